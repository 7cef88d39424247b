"""Tables of action values inside compiled loops: epsilon-greedy choice and averages of entries over time."""

import math

from tdraft.kernels.jit import lean
from tdraft.kernels.rng import randint, uniform


@lean
def greedy(q, rng):
    """Index of the largest entry of q (A,), ties broken uniformly at random (one draw, only where there is a tie)."""
    best, action, ties = q[0], 0, 1
    for a in range(1, len(q)):
        value = q[a]
        if value >= best:  # one branch to foretell in place of two
            ties = 1 if value > best else ties + 1
            action = a if value > best else action
            best = value
    if ties > 1:
        skip = randint(rng, ties)
        for a in range(action, len(q)):
            if q[a] == best:
                if skip == 0:
                    action = a
                    break
                skip -= 1
    return action


@lean
def epsilon_greedy(q, epsilon, rng):
    """Uniformly random with probability epsilon, else greedy with random ties.

    :param q: (A,) action values
    :param epsilon: exploration probability in [0, 1]
    :param rng: generator as in `kernels.rng`
    :return: an action in 0..A-1
    """
    if uniform(rng) < epsilon:
        action = randint(rng, len(q))
    else:
        action = greedy(q, rng)
    return action


@lean
def first_greedy(q):
    """Index of the largest entry of q (A,), the lowest where there are ties: no random numbers, for serving."""
    best, action = q[0], 0
    for a in range(1, len(q)):
        if q[a] > best:
            best, action = q[a], a
    return action


@lean
def softmax(q, temperature, p):
    """Boltzmann probabilities exp(q[a] / temperature) / sum_b exp(q[b] / temperature) into p (A,)   (Sutton & Barto eq. 2.11).

    :param q: (A,) action values
    :param temperature: > 0, in units of q: large is uniform, small is greedy
    """
    best, total = q[0], 0.0
    for a in range(1, len(q)):
        best = max(best, q[a])
    for a in range(len(q)):
        p[a] = math.exp((q[a] - best) / temperature)
        total += p[a]
    for a in range(len(q)):
        p[a] /= total


@lean
def sample(p, rng):
    """An action from probabilities p (A,)."""
    u, action = uniform(rng), 0
    while action < len(p) - 1 and u >= p[action]:
        u -= p[action]
        action += 1
    return action


@lean
def upper_bounds(q, visits, c, bounds):
    """q[a] + c * sqrt(ln n / n[a]) into bounds (A,), n = sum of n[a]   (Auer et al. 2002; Sutton & Barto eq. 2.10).

    :param q: (A,) action values
    :param visits: (A,) how often each action was tried here; the bound of one never tried is inf
    :param c: degree of exploration, >= 0
    """
    total = 0.0
    for a in range(len(q)):
        total += visits[a]
    for a in range(len(q)):
        bounds[a] = q[a] + c * math.sqrt(math.log(total) / visits[a]) if visits[a] > 0.0 else math.inf


@lean
def accumulate(total, since, table, i, j, now, start):
    """Bring the time integral of table[i, j] since `start` up to `now`; call it before the entry changes.

    An average over all steps then costs a few operations an update and none for the entries that rest (Polyak & Juditsky 1992).

    :param total: (N, A) integral of each entry over the steps from `start` to `since`
    :param since: (N, A) step up to which `total` is complete
    """
    total[i, j] += table[i, j] * (now - max(since[i, j], start))
    since[i, j] = now


def average(table, total, since, now: float, start: float):
    """Mean of each entry over the steps from `start` to `now`; the table itself where that is empty.

    :return: a new array of the table's shape
    """
    if total.shape != table.shape or now <= start:
        return table.copy()
    return (total + table * (now - since.clip(min=start))) / (now - start)
