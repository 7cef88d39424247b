"""Temporal-difference errors: pure functions of numbers and arrays, which the compiled training loops call.

Notation as in rlax: `_tm1` is the time before the transition and `_t` the time after it. A `discount_t` is gamma, or 0 where the
episode terminated. Each function runs in Python and inside Numba loops; `.py_func` is the plain Python body.
"""

from tdraft.kernels.jit import lean


@lean
def largest(q_t):
    """The largest entry of q_t (A,)."""
    best = q_t[0]
    for a in range(1, len(q_t)):
        best = max(best, q_t[a])
    return best


@lean
def q_learning_error(q_tm1, a_tm1, r_t, discount_t, q_t):
    """Q-learning TD error: r + discount * max_a q'(a) - q(a_tm1)   (Watkins 1989; Sutton & Barto eq. 6.8).

    :param q_tm1: (A,) action values at the previous state
    :param a_tm1: action taken there
    :param r_t: reward
    :param discount_t: gamma, or 0 where the episode terminated
    :param q_t: (A,) action values at the new state
    :return: the error, same unit as the reward
    """
    return r_t + discount_t * largest(q_t) - q_tm1[a_tm1]


@lean
def sarsa_error(q_tm1, a_tm1, r_t, discount_t, q_t, a_t):
    """Sarsa TD error: r + discount * q'(a_t) - q(a_tm1)   (Rummery & Niranjan 1994; Sutton & Barto eq. 6.7).

    :param a_t: action that will be taken at the new state; the rest as in `q_learning_error`
    """
    return r_t + discount_t * q_t[a_t] - q_tm1[a_tm1]


@lean
def expected_value(q_t, epsilon):
    """Mean of q_t (A,) under its own epsilon-greedy policy; how ties are broken is no matter, as tied values are equal."""
    total = 0.0
    for a in range(len(q_t)):
        total += q_t[a]
    return epsilon * total / len(q_t) + (1.0 - epsilon) * largest(q_t)


@lean
def expected_sarsa_error(q_tm1, a_tm1, r_t, discount_t, q_t, epsilon):
    """Expected Sarsa TD error: r + discount * sum_a pi(a) q'(a) - q(a_tm1), pi epsilon-greedy   (Sutton & Barto eq. 6.9).

    :param epsilon: of the policy that acts, in [0, 1]; the rest as in `q_learning_error`
    """
    return r_t + discount_t * expected_value(q_t, epsilon) - q_tm1[a_tm1]


@lean
def average_reward_error(q_tm1, a_tm1, r_t, duration_t, rho, q_t):
    """Semi-Markov average-reward TD error: r - rho * duration + max_a q'(a) - q(a_tm1).

    With all durations 1 it is differential Q-learning's (Wan, Naik & Sutton 2021, eq. 5); with them it is that of SMART (Das et
    al. 1999). The same error, times a step size, updates rho.

    :param duration_t: sojourn time of the transition
    :param rho: estimate of the reward per unit of time
    """
    return r_t - rho * duration_t + largest(q_t) - q_tm1[a_tm1]


@lean
def greedy_probability(q, a, epsilon):
    """Probability of action a under the epsilon-greedy policy of q (A,), tied best actions sharing theirs: epsilon / A, and for a
    best action (1 - epsilon) / ties more.
    """
    best, ties = largest(q), 0
    for b in range(len(q)):
        if q[b] == best:
            ties += 1
    return epsilon / len(q) + ((1.0 - epsilon) / ties if q[a] == best else 0.0)


@lean
def discounted_return(r_t, discount_t, g_t):
    """Return of the transition before: r + discount * G   (Sutton & Barto eq. 3.9; from a bootstrapped G, eq. 7.4).

    :param g_t: return, or value, from the new state on
    """
    return r_t + discount_t * g_t


@lean
def tree_backup_value(q_t, a_t, g_t, epsilon):
    """Value of a state of which only one action's return is known: sum_a pi(a) q(a) + pi(a_t) * (G - q(a_t)), pi epsilon-greedy.

    With `discounted_return` it is the n-step tree backup (Precup, Sutton & Singh 2000; Sutton & Barto eq. 7.16).

    :param q_t: (A,) action values
    :param a_t: action taken
    :param g_t: return that followed
    """
    return expected_value(q_t, epsilon) + greedy_probability(q_t, a_t, epsilon) * (g_t - q_t[a_t])


@lean
def q_sigma_value(q_t, a_t, g_t, sigma, epsilon):
    """Between sampling and the tree backup: sigma * G + (1 - sigma) * tree_backup_value   (De Asis et al. 2018, on-policy).

    :param sigma: 1 samples (n-step Sarsa), 0 takes expectations (tree backup); the rest as in `tree_backup_value`
    """
    return sigma * g_t + (1.0 - sigma) * tree_backup_value(q_t, a_t, g_t, epsilon)


@lean
def controlled_q_sigma_value(q_t, a_t, g_t, sigma, rho_t, epsilon):
    """Q(sigma) with a control variate: V + (sigma * rho + (1 - sigma) * pi(a_t)) * (G - q(a_t))   (Sutton & Barto eq. 7.17).

    :param rho_t: pi(a_t) / b(a_t), b the policy that acted; V = sum_a pi(a) q(a); the rest as in `q_sigma_value`
    """
    weight = sigma * rho_t + (1.0 - sigma) * greedy_probability(q_t, a_t, epsilon)
    return expected_value(q_t, epsilon) + weight * (g_t - q_t[a_t])


@lean
def double_q_error(q_tm1, a_tm1, r_t, discount_t, other_q_t, best_t):
    """Double Q-learning TD error: r + discount * q2'(argmax_a q1'(a)) - q1(a_tm1)   (van Hasselt 2010; Sutton & Barto eq. 6.10).

    :param q_tm1: (A,) action values at the previous state, of the table that learns
    :param other_q_t: (A,) action values at the new state, of the other table
    :param best_t: the best action there by the table that learns
    """
    return r_t + discount_t * other_q_t[best_t] - q_tm1[a_tm1]


@lean
def expected_other_value(q_t, other_q_t, epsilon):
    """Mean of other_q_t (A,) under the epsilon-greedy policy of q_t (A,), tied best actions sharing their probability."""
    total = 0.0
    for a in range(len(q_t)):
        total += greedy_probability(q_t, a, epsilon) * other_q_t[a]
    return total


@lean
def double_expected_sarsa_error(q_tm1, a_tm1, r_t, discount_t, mean_q_t, other_q_t, epsilon):
    """Double Expected Sarsa TD error: r + discount * sum_a pi(a) q2'(a) - q1(a_tm1), pi epsilon-greedy in the mean of both tables
    (Sutton & Barto sec. 6.7, exercise 6.13).

    :param mean_q_t: (A,) mean of both tables' action values at the new state; the rest as in `double_q_error`
    """
    return r_t + discount_t * expected_other_value(mean_q_t, other_q_t, epsilon) - q_tm1[a_tm1]


@lean
def differential_sarsa_error(q_tm1, a_tm1, r_t, duration_t, rho, q_t, a_t):
    """Differential Sarsa TD error: r - rho * duration + q'(a_t) - q(a_tm1)   (Sutton & Barto eq. 10.10, durations 1).

    :param a_t: action that will be taken at the new state; the rest as in `average_reward_error`
    """
    return r_t - rho * duration_t + q_t[a_t] - q_tm1[a_tm1]


@lean
def r_learning_rate_error(q_tm1, r_t, duration_t, rho, q_t):
    """Error of R-learning's rate: r - rho * duration + max_a q'(a) - max_a q(a)   (Schwartz 1993; Sutton & Barto 1st ed. 6.7).

    :param q_tm1: (A,) action values at the previous state; the rest as in `average_reward_error`
    """
    return r_t - rho * duration_t + largest(q_t) - largest(q_tm1)
