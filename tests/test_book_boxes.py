"""n-step, trace and Monte Carlo agents against naive twins of Sutton & Barto's boxes, on episodes that they went through."""

import gymnasium as gym
import numpy as np
import pytest

from tdraft import agents
from tdraft.agents import AGENTS, Agent


def make(name: str, **settings) -> Agent:
    options = {"seed": 3, "alpha": 0.1, "epsilon": 0.4, "gamma": 0.9, **settings}
    return getattr(agents, AGENTS[name])(gym.make("FrozenLake-v1"), **options)


def episodes(agent: Agent, count: int, limit: int) -> list[tuple[list, list, list, bool]]:
    """States S_0..S_T, actions A_0..A_T (the last one is not taken), rewards R_1..R_T, and whether the episode terminated."""
    env, out = gym.make("FrozenLake-v1", is_slippery=True).unwrapped, []
    env.reset(seed=7)
    for _ in range(count):
        s, _ = env.reset()
        states, actions, rewards, terminated = [s], [agent.begin(s)], [], False
        while not terminated and len(rewards) < limit:
            s, r, terminated, _, _ = env.step(actions[-1])
            r = float(r) - 0.1 * (int(s) % 3)  # rewards everywhere
            actions.append(agent.step(r, 0.0 if terminated else agent.gamma, s))
            states.append(s)
            rewards.append(r)
        out.append((states, actions, rewards, terminated))
    agent.begin(0)  # flushes what is pending
    return out


def policy(q: np.ndarray, epsilon: float) -> np.ndarray:
    best = q == q.max()
    return epsilon / len(q) + (1 - epsilon) * best / best.sum()


def naive_n_step(kind: str, played, gamma, alpha, epsilon, target, n, sigma) -> np.ndarray:
    q = np.zeros((16, 4))
    for S, A, rewards, terminated in played:
        T, R = len(rewards), [0.0, *rewards]
        b = [policy(q[S[0]], epsilon)[A[0]]]
        for t in range(T + n - 1):
            if t < T:
                b.append(policy(q[S[t + 1]], epsilon)[A[t + 1]])
            tau = t - n + 1
            if tau < 0:
                continue
            h = min(tau + n, T)
            ended = terminated and h == T
            pi = [policy(q[s], target) for s in S]
            last = T - 1 if ended else h
            rho = np.prod([pi[k][A[k]] / b[k] for k in range(tau + 1, last + 1)])
            if kind in ("sarsa", "off-policy", "expected"):
                g = sum(gamma ** (i - tau - 1) * R[i] for i in range(tau + 1, h + 1))
                if not ended:
                    g += gamma ** (h - tau) * (pi[h] @ q[S[h]] if kind == "expected" else q[S[h], A[h]])
            else:
                g = q[S[h], A[h]]
                for k in range(h, tau, -1):
                    if k == h and ended:
                        g = R[k]
                        continue
                    v, p, qa = pi[k] @ q[S[k]], pi[k][A[k]], q[S[k], A[k]]
                    if kind == "tree":
                        value = v if k == h else sum(pi[k][a] * (g if a == A[k] else q[S[k], a]) for a in range(4))
                    elif kind == "q-sigma-book":
                        value = (sigma * p / b[k] + (1 - sigma) * p) * (g - qa) + v
                    else:
                        value = sigma * g + (1 - sigma) * (v + p * (g - qa))
                    g = R[k] + gamma * value
            s, a = S[tau], A[tau]
            q[s, a] += alpha * (rho if kind == "off-policy" else 1.0) * (g - q[s, a])
    return q


@pytest.mark.parametrize("n", [1, 2, 5, 40])
@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("n-step-sarsa", "sarsa", {}),
        ("n-step-expected-sarsa", "expected", {}),
        ("off-policy-n-step-sarsa", "off-policy", {"epsilon_target": 0.1}),
        ("tree-backup", "tree", {}),
        ("tree-backup", "tree", {"epsilon_target": 0.0}),
        ("q-sigma", "q-sigma-book", {"sigma": 0.6, "epsilon_target": 0.1}),
        ("q-sigma", "q-sigma-book", {"sigma": 1.0}),
        ("q-sigma", "q-sigma-plain", {"sigma": 0.3, "control_variate": False}),
    ],
)
def test_n_step_rules_equal_the_books_boxes(name, kind, settings, n):
    agent = make(name, n=n, **settings)
    played = episodes(agent, 60, limit=17)
    assert {terminated for *_, terminated in played} == {True, False}
    target = settings["epsilon_target"] if settings.get("epsilon_target") is not None else 0.4
    twin = naive_n_step(kind, played, 0.9, 0.1, 0.4, target, n, settings.get("sigma"))
    np.testing.assert_allclose(agent.q, twin, rtol=0, atol=1e-12)  # pyright: ignore
    assert abs(twin).max() > 0.1


def naive_traces(played, gamma, alpha, lambda_, trace, watkins, epsilon=None) -> np.ndarray:
    """Dense traces."""
    q = np.zeros((16, 4))
    for S, A, rewards, terminated in played:
        e, q_old = np.zeros((16, 4)), q[S[0], A[0]]
        for t, r in enumerate(rewards):
            s, a, following, discount = S[t], A[t], S[t + 1], gamma
            if terminated and t == len(rewards) - 1:
                discount = 0.0
            value = q[following].max() if watkins else q[following, A[t + 1]]
            old, error = q[s, a], r + discount * value - q[s, a]
            if trace == "dutch":
                e[s, a] = (1 - alpha) * e[s, a] + 1
                q += alpha * (error + old - q_old) * e
                q[s, a] -= alpha * (old - q_old)
            else:
                e[s, a] = e[s, a] + 1 if trace == "accumulating" else 1
                q += alpha * error * e
            q_old = value
            e *= gamma * lambda_
            if watkins and q[following, A[t + 1]] < q[following].max():
                e[:] = 0
    return q


@pytest.mark.parametrize("lambda_", [0.0, 0.8, 1.0])
@pytest.mark.parametrize(
    ("name", "trace"),
    [
        ("sarsa-lambda", "accumulating"),
        ("sarsa-lambda", "replacing"),
        ("sarsa-lambda", "dutch"),
        ("q-lambda", "accumulating"),
        ("q-lambda", "replacing"),
    ],
)
def test_traces_equal_dense_ones(name, trace, lambda_):
    agent = make(name, lambda_=lambda_, trace=trace)
    played = episodes(agent, 60, limit=40)
    twin = naive_traces(played, 0.9, 0.1, lambda_, trace, name == "q-lambda")
    np.testing.assert_allclose(agent.q, twin, rtol=0, atol=1e-11)  # pyright: ignore
    if trace == "dutch" and lambda_ == 0:  # equal up to rounding: q + a - b is not q bit for bit
        np.testing.assert_allclose(twin, naive_n_step("sarsa", played, 0.9, 0.1, 0.4, 0.4, 1, 1), rtol=0, atol=1e-12)


def naive_monte_carlo(played, gamma, alpha, first_visit, sample_average) -> np.ndarray:
    q, visits = np.zeros((16, 4)), np.zeros((16, 4))
    for S, A, rewards, _ in played:
        pairs = list(zip(S[:-1], A[:-1]))
        for t, pair in enumerate(pairs):
            if first_visit and pair in pairs[:t]:
                continue
            visits[pair] += 1
            g = sum(gamma**k * r for k, r in enumerate(rewards[t:]))
            q[pair] += (1 / visits[pair] if sample_average else alpha) * (g - q[pair])
    return q


@pytest.mark.parametrize("first_visit", [True, False])
@pytest.mark.parametrize("sample_average", [True, False])
def test_monte_carlo_equals_the_books_box(first_visit, sample_average):
    options = {"first_visit": first_visit, "sample_average": sample_average}
    agent = make("monte-carlo", **options)
    twin = naive_monte_carlo(episodes(agent, 80, limit=40), 0.9, 0.1, **options)
    np.testing.assert_allclose(agent.q, twin, rtol=0, atol=1e-12)  # pyright: ignore


def test_off_policy_monte_carlo_equals_the_books_box():
    agent = make("off-policy-monte-carlo")
    q, weights = np.zeros((16, 4)), np.zeros((16, 4))
    for S, A, rewards, _ in episodes(agent, 200, limit=40):
        b, g, w = [policy(q[s], 0.4)[a] for s, a in zip(S, A)], 0.0, 1.0  # the values rest during an episode
        for t in range(len(rewards) - 1, -1, -1):
            s, a = S[t], A[t]
            g = 0.9 * g + rewards[t]
            weights[s, a] += w
            q[s, a] += w / weights[s, a] * (g - q[s, a])
            if q[s].argmax() != a:
                break
            w /= b[t]
    np.testing.assert_allclose(agent.q, q, rtol=0, atol=1e-12)  # pyright: ignore
    assert weights.max() > 10


def test_an_episode_longer_than_the_buffer_is_learned_in_parts():
    agent = make("monte-carlo", capacity=3, first_visit=False, sample_average=True, gamma=1.0)
    agent.begin(0)
    for reward in (1.0, 2.0, 4.0):
        agent.step(reward, 1.0, 0)
    assert agent.learner.count[0] == 0 and agent.learner.weight[0].sum() == 3
    q = agent.q.copy()  # pyright: ignore
    agent.step(8.0, 1.0, 0)
    np.testing.assert_array_equal(agent.q, q)  # pyright: ignore
    agent.begin(5)  # truncated: the return ends at its last reward
    assert agent.learner.weight[0].sum() == 4
