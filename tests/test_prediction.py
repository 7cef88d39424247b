"""Prediction: exact identities between methods, linear algebra, enumeration, and naive Python versions of each update."""

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from numba import njit

from tdraft.agents import LinearQ, QLearning
from tdraft.agents.base import SpaceError
from tdraft.agents.experiments import episode_length, episode_reward, learning_curve, rms_error, value_error, weights
from tdraft.agents.prediction import (
    GTD2,
    LSTD,
    TD,
    TDC,
    EmphaticTD,
    LambdaReturn,
    MonteCarlo,
    NStepTD,
    RecursiveLSTD,
    TDLambda,
    TrueOnlineTD,
)
from tdraft.agents.prediction import expected as ex
from tdraft.agents.prediction.least_squares import batch_td
from tdraft.agents.settings import SettingsError
from tdraft.envs.compiled import Table, leaves, table_reset, table_step
from tdraft.envs.textbook.base import DynamicsEnv, TableEnv
from tdraft.value.features import fourier, fourier_basis, polynomial, state_features
from tdraft.value.tiles import tile_coding

N = 5
END = N
TRUE = np.append(np.arange(1, N + 1) / (N + 1), np.nan)
METHODS = [
    (TD, {}),
    (NStepTD, {"n": 3}),
    (NStepTD, {"n": 3, "control_variate": True}),
    (MonteCarlo, {}),
    (MonteCarlo, {"alpha": 0.1, "visits": "first"}),
    (MonteCarlo, {"sampling": "weighted"}),
    (MonteCarlo, {"sampling": "per-decision"}),
    (LambdaReturn, {"lambda_": 0.7}),
    (LambdaReturn, {"lambda_": 0.7, "frozen": "nothing"}),
    (LambdaReturn, {"lambda_": 0.7, "frozen": "everything"}),
    (TDLambda, {"lambda_": 0.7}),
    (TDLambda, {"lambda_": 0.7, "trace": "replacing"}),
    (TDLambda, {"lambda_": 0.7, "trace": "dutch"}),
    (TrueOnlineTD, {"lambda_": 0.7}),
    (EmphaticTD, {"lambda_": 0.3}),
    (GTD2, {}),
    (TDC, {}),
    (LSTD, {"lambda_": 0.5}),
    (RecursiveLSTD, {"lambda_": 0.5}),
]
IDS = [f"{m.name} {' '.join(str(v) for v in h.values())}" for m, h in METHODS]


def walk(n: int = N, left: float = 0.0) -> TableEnv:
    """The random walk of example 6.2: n states, then the end."""
    p = {
        s: {
            0: [
                (0.5, s - 1, 0.0, False) if s else (0.5, n, left, True),
                (0.5, s + 1, 0.0, False) if s < n - 1 else (0.5, n, 1.0, True),
            ]
        }
        for s in range(n)
    }
    p[n] = {0: [(1.0, n, 0.0, True)]}
    return TableEnv(p, np.eye(n + 1)[n // 2])


def two_actions(n: int = 4, seed: int = 0) -> TableEnv:
    """A random MDP: n states, then the end, reached with probability 1/4 from everywhere."""
    rng = np.random.default_rng(seed)
    p = {n: {a: [(1.0, n, 0.0, True)] for a in range(2)}}
    for s in range(n):
        p[s] = {}
        for a in range(2):
            q, r = rng.dirichlet(np.ones(n)), rng.normal(size=n + 1)
            p[s][a] = [(0.75 * q[k], k, r[k], False) for k in range(n)] + [(0.25, n, r[n], True)]
    return TableEnv(p, np.append(np.full(n, 1 / n), 0.0))


def trajectory(agent, steps: int) -> list[tuple[int, int, float, float, int, bool]]:
    """(state, action, reward, discount, next state, first of its episode) as `agent`, made afresh, would meet them."""
    seen, gamma = [], agent.gamma
    obs, _ = agent.env.reset(seed=agent.env_seed)
    action, first = agent.begin(obs), True
    for _ in range(steps):
        following, reward, terminated, _, _ = agent.env.step(action)
        discount = 0.0 if terminated else gamma
        seen.append((obs, action, reward, discount, following, first))
        action = agent.step(reward, discount, following)
        obs, first = following, terminated
        if terminated:
            obs, _ = agent.env.reset()
            action = agent.begin(obs)
    return seen


def episodes(data):
    """The complete episodes of a trajectory."""
    whole, now = [], []
    for row in data:
        now.append(row)
        if row[3] == 0.0:
            whole.append(now)
            now = []
    return whole


def whole_episodes(make, steps: int):
    """An agent that learned from complete episodes only, about `steps` steps, and those episodes."""
    seen = episodes(trajectory(make(), steps))
    agent = make()
    trajectory(agent, sum(len(e) for e in seen))
    return agent, seen


def run(kind, steps=2000, env=None, seed=1, **settings):
    return kind(env or walk(), seed=seed, **settings).learn(steps)


# One definition, every path.


@pytest.mark.parametrize("kind, settings", METHODS, ids=IDS)
def test_compiled_equals_interpreted_and_parts_the_whole(kind, settings, tmp_path):
    def make():
        return kind(two_actions(), seed=2, gamma=0.9, **settings)

    whole, interpreted, first = make().learn(1501), make(), make().learn(700)
    assert whole.path == "compiled"
    interpreted.compiled = None
    interpreted.learn(1501)
    first.save(tmp_path / "agent")
    resumed = type(first).load(tmp_path / "agent", env=first.env).learn(801)
    for other in (interpreted, resumed):
        for (name, a), (_, b) in zip(leaves(whole.learner), leaves(other.learner)):
            np.testing.assert_array_equal(a, b, err_msg=name)
        np.testing.assert_array_equal(whole.v, other.v)
    assert np.abs(whole.v).max() > 0.01


@pytest.mark.parametrize("kind, settings", [(MonteCarlo, {}), (TDLambda, {})])
def test_seeds_of_an_experiment_do_not_depend_on_each_other(kind, settings):
    agent = kind(walk(), **settings)
    before = [a.copy() for _, a in leaves(agent.learner)]
    together = learning_curve(agent, range(4), 30, rms_error, TRUE)
    np.testing.assert_array_equal(learning_curve(agent, [3, 1], 30, rms_error, TRUE), together[[3, 1]])
    for (_, a), b in zip(leaves(agent.learner), before):
        np.testing.assert_array_equal(a, b)


def test_a_row_of_an_experiment_is_an_agent_of_that_seed():
    lengths = learning_curve(TD(walk()), [7], 50, episode_length)[0]
    history = learning_curve(TD(walk()), [7], 50, weights, width=N + 1, at=[0, 20, 50])[0]
    assert not history[0].any()
    for k, episode in ((1, 20), (2, 50)):
        np.testing.assert_array_equal(run(TD, int(lengths[:episode].sum()), seed=7).w, history[k])


def test_metrics_by_hand():
    agent, out = TD(walk(n=2)), np.zeros(1)
    agent.learner.w[:] = 1.0, 3.0, 9.0
    rms_error(agent.learner, np.array([0.0, 1.0, np.nan]), 0.0, 0, out)
    assert out[0] == np.sqrt(2.5)
    value_error(agent.learner, np.array([[0.0, 1.0, 0.0], [0.25, 0.75, 0.0]]), 0.0, 0, out)
    assert out[0] == np.sqrt(0.25 * 1 + 0.75 * 4)
    episode_reward(agent.learner, np.zeros(0), -3.5, 7, out)
    assert out[0] == -3.5


def test_control_agents_have_learning_curves_too():
    @njit
    def both(learner, data, reward, length, out):
        out[0], out[1] = reward, length

    env = gym.make("CliffWalking-v1")
    history = learning_curve(QLearning(env), [5, 6], 30, both, width=2)
    agent = QLearning(env, seed=6).learn(int(history[1, :, 1].sum()))
    np.testing.assert_array_equal(agent.standing.recent[:30], history[1])


# Identities.


@pytest.mark.parametrize("kind, settings", [(TDLambda, {"trace": t}) for t in ("accumulating", "replacing", "dutch")]
                         + [(TrueOnlineTD, {}), (EmphaticTD, {})])  # fmt: skip
def test_without_traces_it_is_td0_bit_for_bit(kind, settings):
    if kind is EmphaticTD:  # its emphasis is 1 where gamma is 0
        np.testing.assert_array_equal(run(kind, lambda_=0.0, gamma=0.0).w, run(TD, gamma=0.0).w)
    else:
        np.testing.assert_array_equal(run(kind, lambda_=0.0, **settings).w, run(TD).w)
        np.testing.assert_array_equal(
            run(kind, lambda_=0.0, env=two_actions(), gamma=0.9, **settings).w, run(TD, env=two_actions(), gamma=0.9).w
        )


def test_emphatic_td1_on_policy_is_td1():
    np.testing.assert_allclose(run(EmphaticTD, lambda_=1.0, alpha=0.01).w, run(TDLambda, lambda_=1.0, alpha=0.01).w, atol=1e-13)


def test_one_step_is_td0_and_the_whole_episode_monte_carlo():
    np.testing.assert_array_equal(run(NStepTD, n=1).w, run(TD).w)
    env = two_actions()
    mc, long = (run(MonteCarlo, env=env, alpha=0.05, gamma=0.9), run(NStepTD, env=env, n=1000, alpha=0.05, gamma=0.9))
    np.testing.assert_array_equal(long.w, mc.w)


def test_ends_of_the_lambda_return():
    """lambda = 0 with the newest values is TD(0), after each episode; lambda = 1 is constant-alpha Monte Carlo."""
    env = two_actions()
    agent = LambdaReturn(env, seed=1, lambda_=0.0, frozen="nothing", gamma=0.9)
    w = np.zeros(env.observation_space.n)
    for s, _, r, discount, s2, _ in (row for e in episodes(trajectory(agent, 500)) for row in e):
        w[s] += 0.1 * (r + discount * w[s2] - w[s])
    np.testing.assert_allclose(agent.w, w, atol=1e-14)
    mc = run(MonteCarlo, env=env, alpha=0.1, gamma=0.9).w
    np.testing.assert_array_equal(run(LambdaReturn, env=env, lambda_=1.0, gamma=0.9).w, mc)
    np.testing.assert_allclose(run(LambdaReturn, env=env, lambda_=1.0, gamma=0.9, frozen="nothing").w, mc, atol=1e-14)


@pytest.mark.parametrize("frozen", ["nothing", "returns", "everything"])
def test_lambda_return_against_its_sum_of_n_step_returns(frozen):
    env, lam, gamma, alpha = two_actions(), 0.6, 0.9, 0.1
    agent = LambdaReturn(env, seed=4, lambda_=lam, frozen=frozen, gamma=gamma, alpha=alpha)
    w = np.zeros(env.observation_space.n)

    def target(v, episode, t):
        """(1 - lambda) sum_n lambda^(n-1) G_{t:t+n} + lambda^(T-t-1) G_t   (Sutton & Barto eq. 12.3)."""
        total, n_step, scale = 0.0, 0.0, 1.0
        for n, (_, _, r, discount, s2, _) in enumerate(episode[t:], 1):
            n_step += scale * r
            scale *= discount
            weight = lam ** (n - 1) * (1 - lam if discount else 1)
            total += weight * (n_step + scale * v[s2])
        return total

    for episode in episodes(trajectory(agent, 400)):
        start = w.copy()
        for t, row in enumerate(episode):
            v = w if frozen == "nothing" else start
            w[row[0]] += alpha * (target(v, episode, t) - (start if frozen == "everything" else w)[row[0]])
    np.testing.assert_allclose(agent.w, w, atol=1e-12)


def online_lambda_return(episode, w, x, lam, alpha):
    """The online lambda-return algorithm as it is told: after each step all updates of the episode anew (S&B sec. 12.4)."""
    first = w.copy()
    values = [first]  # w_h after the h-th step: v of s_h in the truncated returns is taken from w_{h-1}
    for h in range(1, len(episode) + 1):
        w = first.copy()
        for t in range(h):
            total, n_step, scale = 0.0, 0.0, 1.0
            for n in range(1, h - t + 1):
                _, _, r, discount, s2, _ = episode[t + n - 1]
                n_step += scale * r
                scale *= discount
                g = n_step + scale * (x[s2] @ values[t + n - 1])
                total += (lam ** (n - 1) * (1 - lam) if n < h - t else lam ** (n - 1)) * g
            s = episode[t][0]
            w = w + alpha * (total - x[s] @ w) * x[s]
        values.append(w)
    return w


def test_true_online_td_is_the_online_lambda_return_algorithm():
    env = two_actions()
    x = np.random.default_rng(3).normal(size=(5, 3))
    agent, data = whole_episodes(lambda: TrueOnlineTD(env, features=x, seed=5, lambda_=0.8, gamma=0.9, alpha=0.05), 200)
    w = np.zeros(3)
    for episode in data:
        w = online_lambda_return(episode, w, x, 0.8, 0.05)
    np.testing.assert_allclose(agent.w, w, atol=1e-10)


@pytest.mark.parametrize("kind, settings", METHODS, ids=IDS)
def test_one_hot_features_are_the_table(kind, settings):
    env = two_actions()
    matrix = state_features(np.eye(5)[:, [3, 1, 0, 2, 4]])
    table = kind(env, seed=1, gamma=0.9, **settings).learn(1000)
    linear = kind(env, seed=1, gamma=0.9, features=matrix, **settings).learn(1000)
    np.testing.assert_allclose(linear.v, table.v, atol=1e-10)


# Each update against a line of Python, off-policy and with dense features.

POLICY, BEHAVIOUR = np.array([0.2, 0.8]), np.array([0.6, 0.4])
RHO = POLICY / BEHAVIOUR


def naive(kind, data, x, alpha, settings):
    """The updates as the book writes them."""
    w, u, z = np.zeros(x.shape[1]), np.zeros(x.shape[1]), np.zeros(x.shape[1])
    lam, beta = settings.get("lambda_", 0.0), settings.get("beta", 0.1)
    before, rho_before, follow = 0.0, 0.0, 0.0
    for s, a, r, discount, s2, first in data:
        if first:
            z, before, follow = np.zeros_like(z), 0.0, 0.0
        rho, delta = RHO[a], r + discount * x[s2] @ w - x[s] @ w
        if kind is TD:
            w = w + alpha * rho * delta * x[s]
        elif kind is TDLambda:
            z = rho * (before * lam * z + x[s])
            w = w + alpha * delta * z
        elif kind is EmphaticTD:
            follow = rho_before * before * follow + 1
            z = rho * (before * lam * z + (lam + (1 - lam) * follow) * x[s])
            w = w + alpha * delta * z
        else:
            aside = u @ x[s]
            u = u + beta * rho * (delta - aside) * x[s]
            if kind is GTD2:
                w = w + alpha * rho * (x[s] - discount * x[s2]) * aside
            else:
                w = w + alpha * rho * (delta * x[s] - discount * x[s2] * aside)
        before, rho_before = discount, rho
    return w


@pytest.mark.parametrize(
    "kind, settings",
    [(TD, {}), (TDLambda, {"lambda_": 0.6}), (EmphaticTD, {"lambda_": 0.4}), (GTD2, {"beta": 0.2}), (TDC, {"beta": 0.2})],
)
def test_off_policy_updates_as_the_book_writes_them(kind, settings):
    x = np.random.default_rng(8).normal(size=(5, 3))
    agent = kind(two_actions(), policy=POLICY, behaviour=BEHAVIOUR, features=x, seed=6, gamma=0.9, alpha=0.01, **settings)
    data = trajectory(agent, 300)
    np.testing.assert_allclose(agent.w, naive(kind, data, x, 0.01, settings), atol=1e-12)


@pytest.mark.parametrize("trace", ["replacing", "dutch"])
def test_other_traces_of_a_table(trace):
    agent = TDLambda(walk(), seed=6, lambda_=0.8, alpha=0.3, trace=trace, gamma=0.95)
    w, z, before = np.zeros(N + 1), np.zeros(N + 1), 0.0
    for s, _, r, discount, s2, first in trajectory(agent, 300):
        z = np.zeros(N + 1) if first else z * before * 0.8
        z[s] = 1.0 if trace == "replacing" else (1 - 0.3) * z[s] + 1
        w = w + 0.3 * (r + discount * w[s2] - w[s]) * z
        before = discount
    np.testing.assert_allclose(agent.w, w, atol=1e-13)


@pytest.mark.parametrize("control_variate", [False, True])
def test_off_policy_n_step_returns(control_variate):
    """Sutton & Barto eq. 7.9 and 7.13, with the update of each state n steps after it."""
    n, alpha, settings = 3, 0.05, {"policy": POLICY, "behaviour": BEHAVIOUR, "control_variate": control_variate}
    agent, data = whole_episodes(lambda: NStepTD(two_actions(), seed=6, gamma=0.9, alpha=alpha, n=n, **settings), 400)
    w = np.zeros(5)
    for episode in data:
        for t in range(len(episode)):
            part = episode[t : t + n]
            g = w[part[-1][4]]
            for s, a, r, discount, _, _ in reversed(part):
                g = r + discount * g
                g = RHO[a] * g + (1 - RHO[a]) * w[s] if control_variate else g
            product = 1.0 if control_variate else np.prod([RHO[row[1]] for row in part])
            s = episode[t][0]
            w[s] += alpha * product * (g - w[s])
    np.testing.assert_allclose(agent.w, w, atol=1e-12)


def test_predict_serves_the_policy_and_draws_from_the_behaviour():
    agent = TD(two_actions(), policy=POLICY, behaviour=BEHAVIOUR, seed=0)
    states = np.zeros(4000, np.int64)
    assert agent.predict(states)[0].all()  # action 1 is the likelier
    share = agent.predict(states, deterministic=False)[0].mean()
    assert share == pytest.approx(0.4, abs=4 * np.sqrt(0.24 / 4000))


# Monte Carlo: averages, and importance sampling against enumeration.


@pytest.mark.parametrize("visits", ["first", "every"])
def test_monte_carlo_averages_the_returns(visits):
    agent, data = whole_episodes(lambda: MonteCarlo(two_actions(), seed=3, gamma=0.9, visits=visits), 600)
    returns: dict[int, list[float]] = {}
    for episode in data:
        met = set()
        for t, row in enumerate(episode):
            if visits == "every" or row[0] not in met:
                returns.setdefault(row[0], []).append(sum(0.9**k * r[2] for k, r in enumerate(episode[t:])))
            met.add(row[0])
    np.testing.assert_allclose(agent.v[:4], [np.mean(returns[s]) for s in range(4)], atol=1e-12)


TWO_STEPS = {0: {0: [(1.0, 1, 1.0, False)], 1: [(1.0, 2, 0.0, False)]}}  # rewards 1 or 0, then one that depends on the state
for _s, _r in ((1, (4.0, -2.0)), (2, (3.0, 5.0))):
    TWO_STEPS[_s] = {a: [(1.0, 3, _r[a], True)] for a in range(2)}
TWO_STEPS[3] = {a: [(1.0, 3, 0.0, True)] for a in range(2)}
START = np.array([1.0, 0, 0, 0])


@pytest.mark.parametrize("sampling", ["ordinary", "weighted", "per-decision"])
def test_importance_sampling_against_its_formula_and_its_expectation(sampling):
    def make():
        return MonteCarlo(TableEnv(TWO_STEPS, START), policy=POLICY, behaviour=BEHAVIOUR, sampling=sampling, seed=2, gamma=0.5)

    agent, data = whole_episodes(make, 40)
    total = mass = 0.0
    for (_, a, r, *_), (_, b, q, *_) in data:
        weight = RHO[a] * RHO[b]
        total += RHO[a] * (r + 0.5 * RHO[b] * q) if sampling == "per-decision" else weight * (r + 0.5 * q)
        mass += weight if sampling == "weighted" else 1.0
    assert agent.v[0] == pytest.approx(total / mass, abs=1e-12)

    # the exact expectation of one episode's estimate is the target policy's value, for the two unbiased kinds
    value = mean = square = 0.0
    for a in range(2):
        for b in range(2):
            r, q = TWO_STEPS[0][a][0][2], TWO_STEPS[1 + a][b][0][2]
            value += POLICY[a] * POLICY[b] * (r + 0.5 * q)
            one = RHO[a] * (r + 0.5 * RHO[b] * q) if sampling == "per-decision" else RHO[a] * RHO[b] * (r + 0.5 * q)
            mean += BEHAVIOUR[a] * BEHAVIOUR[b] * one
            square += BEHAVIOUR[a] * BEHAVIOUR[b] * one**2
    assert mean == pytest.approx(value, abs=1e-12)
    n = 20_000  # episodes; within 4 of their standard errors, the weighted estimate's is smaller here
    assert make().learn(2 * n).v[0] == pytest.approx(value, abs=4 * np.sqrt((square - mean**2) / n))


# Least squares.


@pytest.mark.parametrize("kind", [LSTD, RecursiveLSTD])
def test_batch_td_is_certainty_equivalence_and_batch_monte_carlo_the_average(kind):
    extra = {"ridge": 1e-9} if kind is RecursiveLSTD else {}
    tolerance = 1e-5 if extra else 1e-9
    agent, data = whole_episodes(lambda: kind(walk(), seed=3, v_init=0.5, **extra), 200)
    counts, reward = np.zeros((N + 1, N + 1)), np.zeros(N + 1)
    for s, _, r, _, s2, _ in (row for e in data for row in e):
        counts[s, s2] += 1
        reward[s] += r
    visits = counts.sum(axis=1)[:N, None]
    estimate = np.linalg.solve(np.eye(N) - counts[:N, :N] / visits, reward[:N] / visits[:, 0])
    np.testing.assert_allclose(agent.v[:N], estimate, atol=tolerance)

    rows = [row for e in data for row in e]
    x, following = np.eye(N + 1)[[r[0] for r in rows]], np.eye(N + 1)[[r[4] for r in rows]]
    told = batch_td(x, [r[2] for r in rows], [r[3] for r in rows], following, np.full(N + 1, 0.5), alpha=0.5 / len(rows))
    np.testing.assert_allclose(told[:N], estimate, atol=1e-8)

    mc, _ = whole_episodes(lambda: kind(walk(), seed=3, v_init=0.5, lambda_=1.0, **extra), 200)
    average, _ = whole_episodes(lambda: MonteCarlo(walk(), seed=3), 200)
    np.testing.assert_allclose(mc.v[:N], average.v[:N], atol=tolerance)


def test_weights_without_data_stay_as_they_were():
    env = TableEnv({0: {0: [(1.0, 1, 2.0, True)]}, 1: {0: [(1.0, 1, 0.0, True)]}}, [1.0, 0.0])
    for kind in (LSTD, RecursiveLSTD):
        np.testing.assert_allclose(
            kind(env, v_init=7.0, **({"ridge": 1e-12} if kind is RecursiveLSTD else {})).learn(9).v, [2, 7]
        )


def chain(env: TableEnv, policy, gamma: float):
    """P (S, S) and r (S,) of a policy, ends left out of P."""
    n = env.observation_space.n
    p, r = np.zeros((n, n)), np.zeros(n)
    for s in range(n):
        for a, share in enumerate(policy):
            for q, s2, reward, over in env.P[s][a]:
                r[s] += share * q * reward
                p[s, s2] += share * q * (not over)
    return p, r


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_lstd_is_the_fixed_point_of_its_own_data(lambda_):
    """The system summed over the episodes and solved; the incremental inverse agrees."""
    x, env = polynomial(np.linspace(0, 1, 5), 2), two_actions()
    agent, data = whole_episodes(lambda: LSTD(env, features=x, seed=3, gamma=0.9, lambda_=lambda_), 500)
    a, b = np.zeros((3, 3)), np.zeros(3)
    for episode in data:
        z = np.zeros(3)
        for s, _, r, discount, s2, _ in episode:
            z = 0.9 * lambda_ * z + x[s]
            a += np.outer(z, x[s] - discount * x[s2])
            b += r * z
    np.testing.assert_allclose(agent.w, np.linalg.solve(a, b), atol=1e-10)
    recursive, _ = whole_episodes(lambda: RecursiveLSTD(env, features=x, seed=3, gamma=0.9, lambda_=lambda_, ridge=1e-8), 500)
    np.testing.assert_allclose(recursive.w, agent.w, atol=1e-5)


def test_lstd_on_every_transition_once_is_tds_fixed_point():
    """Deterministic cycle of 4 states, each seen equally often: the data's system is the model's."""
    rewards = [1.0, -2.0, 0.5, 3.0]
    env = TableEnv({s: {0: [(1.0, (s + 1) % 4, rewards[s], False)]} for s in range(4)}, [1.0, 0, 0, 0])
    x = polynomial(np.linspace(0, 1, 4), 1)
    m = ex.model(x, np.full(4, 0.25), np.roll(np.eye(4), 1, axis=1), rewards, 0.9)
    w = LSTD(env, features=x, gamma=0.9).learn(4000).w
    np.testing.assert_allclose(w, ex.td_fixed_point(m), atol=1e-10)
    np.testing.assert_allclose(ex.projected_errors(m, w), 0, atol=1e-10)
    np.testing.assert_allclose(ex.td_fixed_point(m._replace(x=np.eye(4)), 0.7),
                               np.linalg.solve(np.eye(4) - 0.9 * m.following, rewards), atol=1e-10)  # fmt: skip


# Expected updates: Baird's counterexample (Sutton & Barto fig. 11.2, 11.5, 11.6).

X = np.hstack([2 * np.eye(7), np.ones((7, 1))])
X[6, 6:] = 1.0, 2.0
SOLID = np.tile(np.eye(7)[6], (7, 1))
BAIRD = ex.model(X, np.full(7, 1 / 7), SOLID, np.zeros(7), 0.99)
W0 = np.array([1.0, 1, 1, 1, 1, 1, 10, 1])


def test_first_expected_updates_on_baird_by_hand():
    """v = 3 in the upper states, 12 in the lower: delta = .99 * 12 - 3 = 8.88 and -.12."""
    step = 0.01 / 7 * np.array([2 * 8.88] * 6 + [-0.12, 6 * 8.88 - 2 * 0.12])
    np.testing.assert_allclose(ex.expected_td(BAIRD, W0, 0.01), W0 + step, atol=1e-14)
    for update in (ex.expected_tdc, ex.expected_gtd2):
        w, u = update(BAIRD, W0, np.zeros(8), 0.01, 0.05)
        np.testing.assert_allclose(w, W0 + step if update is ex.expected_tdc else W0, atol=1e-14)
        np.testing.assert_allclose(u, 5 * step, atol=1e-14)
    w, m = ex.expected_emphatic_td(BAIRD, W0, np.zeros(7), 0.01)
    np.testing.assert_allclose(w, W0 + step, atol=1e-14)
    np.testing.assert_array_equal(m, np.ones(7))
    np.testing.assert_allclose(ex.expected_emphatic_td(BAIRD, w, m, 0.01)[1], [1] * 6 + [1 + 0.99 * 7], atol=1e-14)


def test_on_baird_td_diverges_tdc_lowers_the_projected_error_and_emphatic_td_converges():
    w, tdc, u = W0, W0, np.zeros(8)
    for _ in range(1000):
        w = ex.expected_td(BAIRD, w, 0.01)
        tdc, u = ex.expected_tdc(BAIRD, tdc, u, 0.005, 0.05)
    assert np.abs(w).max() > 100

    def pbe(w):
        return np.sqrt((BAIRD.weight * ex.projected_errors(BAIRD, w) ** 2).sum())

    def ve(w):
        return np.sqrt((BAIRD.weight * (X @ w) ** 2).sum())

    assert pbe(tdc) < 0.1 * pbe(W0) and ve(tdc) > 1  # values stay far from their truth, 0 (Sutton & Barto fig. 11.5)
    w, m = W0, np.zeros(7)
    for _ in range(1000):
        w, m = ex.expected_emphatic_td(BAIRD, w, m, 0.03)
    assert ve(w) < 0.05 * ve(W0)


def test_expected_updates_are_means_of_the_sampled_ones():
    """Every (state, action, next state) of Baird's chain once, weighted by its probability."""
    p = {s: {0: [(1 / 6, k, 0.0, False) for k in range(6)], 1: [(1.0, 6, 0.0, False)]} for s in range(7)}
    behaviour, policy = np.array([6 / 7, 1 / 7]), np.array([0.0, 1.0])
    start, aside = np.arange(8.0), np.linspace(-1, 1, 8)
    agents = [k(TableEnv(p, np.full(7, 1 / 7)), policy=policy, behaviour=behaviour, features=X, gamma=0.99, alpha=0.1)
              for k in (TD, GTD2, TDC)]  # fmt: skip
    expected = [
        (ex.expected_td(BAIRD, start, 0.1),),
        ex.expected_gtd2(BAIRD, start, aside, 0.1, 0.1),
        ex.expected_tdc(BAIRD, start, aside, 0.1, 0.1),
    ]
    for agent, wanted in zip(agents, expected):
        x, mean_w, mean_u = agent.learner, np.zeros(8), np.zeros(8)
        for s in range(7):
            for a in range(2):
                for q, s2, r, _ in p[s][a]:
                    x.w[:], x.last[:] = start, (s, a)
                    if x.memory:
                        x.memory.u[:] = aside
                    agent.step(r, 0.99, s2)
                    mean_w += behaviour[a] * q / 7 * x.w
                    mean_u += behaviour[a] * q / 7 * (x.memory.u if x.memory else 0)
        np.testing.assert_allclose(mean_w, wanted[0], atol=1e-12)
        if x.memory:
            np.testing.assert_allclose(mean_u, wanted[1], atol=1e-12)


# Vectors of observations, and policies of agents.


class Positions(NamedTuple):
    table: Table
    place: np.ndarray  # (1,) the observation: the state as a float


@njit
def positions_reset(params, rng):
    params.place[0] = table_reset(params.table, rng)
    return params.place


@njit
def positions_step(params, obs, action, rng):
    following, reward, over, duration = table_step(params.table, int(obs[0]), action, rng)
    params.place[0] = following
    return params.place, reward, over, duration


class PositionsEnv(DynamicsEnv):
    """A table env whose observation is a vector of one number, the state."""

    reset_rule, step_rule, mutable = staticmethod(positions_reset), staticmethod(positions_step), ("place",)

    def __init__(self, env: TableEnv):
        box = gym.spaces.Box(0.0, float(env.observation_space.n), (1,), np.float64)
        super().__init__(Positions(env.params, np.zeros(1)), box, env.action_space)


@pytest.mark.parametrize(
    "kind, settings",
    [
        (TD, {}),
        pytest.param(NStepTD, {"n": 3}, marks=pytest.mark.slow),
        pytest.param(MonteCarlo, {"alpha": 0.1, "capacity": 100}, marks=pytest.mark.slow),
        pytest.param(TDLambda, {}, marks=pytest.mark.slow),
    ],
)
def test_vectors_with_a_tile_for_each_state_are_the_table(kind, settings, tmp_path):
    settings = {"policy": POLICY, "behaviour": BEHAVIOUR, "gamma": 0.9, "seed": 3, **settings}
    tiles = tile_coding([{0: np.arange(0.5, 4)}])

    def make():
        return kind(PositionsEnv(two_actions()), features=tiles, **settings)

    table, vector, interpreted = kind(two_actions(), **settings).learn(1001), make().learn(500), make()
    vector.save(tmp_path / "agent")
    vector = kind.load(tmp_path / "agent", env=vector.env).learn(501)
    interpreted.compiled = None
    interpreted.learn(1001)
    assert vector.path == "compiled"
    for agent in (vector, interpreted):
        np.testing.assert_array_equal(agent.w, table.w)
        np.testing.assert_array_equal(agent.values(np.arange(4.0)[:, None]), table.v[:4])


def test_fourier_features_of_vectors_are_those_of_the_matrix():
    x = fourier(np.arange(5) / 4, 3)
    table = TD(two_actions(), features=x, gamma=0.9, seed=3).learn(1000)
    vector = TD(PositionsEnv(two_actions()), features=fourier_basis(0.0, 4.0, 3), gamma=0.9, seed=3).learn(1000)
    np.testing.assert_allclose(vector.w, table.w, atol=1e-12)
    np.testing.assert_allclose(vector.values(np.arange(5.0)[:, None]), table.v, atol=1e-12)


@pytest.mark.slow
def test_values_of_an_agents_policy():
    """Q-learning's greedy policy on a deterministic corridor, as a table and over vectors: -1 a step to the end."""
    steps = {s: {0: [(1.0, max(s - 1, 0), -1.0, False)], 1: [(1.0, s + 1, -1.0, s == 2)]} for s in range(3)}
    steps[3] = {a: [(1.0, 3, 0.0, True)] for a in range(2)}
    env = TableEnv(steps, [1 / 3, 1 / 3, 1 / 3, 0])
    policy = QLearning(env, seed=0).learn(5000).policy()
    agent = TD(env, policy=policy, alpha=0.5).learn(1000)
    np.testing.assert_allclose(agent.v[:3], [-3, -2, -1], atol=1e-6)
    over = PositionsEnv(env)
    linear = LinearQ(over, seed=0, features=tile_coding([{0: np.arange(0.5, 3)}])).learn(5000)
    vector = TD(over, policy=linear.policy(), features=linear.features, alpha=0.5).learn(1000)
    np.testing.assert_allclose(vector.values([[0.0], [1.0], [2.0]]), [-3, -2, -1], atol=1e-6)
    assert vector.predict(np.array([1.0]))[0] == 1


# Statistics, ends of episodes, bad input.


def test_example_6_2_ends_near_its_known_errors():
    """TD(0), alpha .1: 400 runs; the exact first error, and TD ahead of Monte Carlo by more than 4 standard errors (ex. 6.2)."""
    td = learning_curve(TD(walk(), alpha=0.1, v_init=0.5), range(400), 100, rms_error, TRUE, at=[0, 100])
    mc = learning_curve(MonteCarlo(walk(), alpha=0.02, v_init=0.5), range(400), 100, rms_error, TRUE, at=[100])
    np.testing.assert_allclose(td[:, 0], np.sqrt(np.mean((TRUE[:N] - 0.5) ** 2)), atol=1e-15)
    difference = mc[:, 0] - td[:, 1]
    assert difference.mean() > 4 * difference.std() / 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, settings",
    [(TD, {}), (NStepTD, {"n": 4}), (MonteCarlo, {}), (TDLambda, {}), (TrueOnlineTD, {}), (LambdaReturn, {}), (LSTD, {})],
)
def test_everything_converges_to_the_true_values(kind, settings):
    """Averages, or steps that fall to 0: within .02, about 5 standard errors of 10^5 returns."""
    if kind not in (MonteCarlo, LSTD):
        settings = {**settings, "alpha": 0.1, "alpha_final": 0.0, "horizon": 900_000}
    agent = run(kind, 900_000, **settings)
    np.testing.assert_allclose(agent.v[:N], TRUE[:N], atol=0.02)


def test_a_time_limit_bootstraps_and_monte_carlo_closes():
    """One state, reward 1 for ever, three steps an episode, gamma 1/2; v = 10 at first."""
    env = TableEnv({0: {0: [(1.0, 0, 1.0, False)]}}, [1.0])

    def after_one_episode(kind, **settings):
        return kind(gym.wrappers.TimeLimit(env, 3), alpha=0.5, gamma=0.5, v_init=10.0, **settings).learn(4).v[0]

    v = 10.0
    for steps in (3, 2, 1):
        bootstrap = v
        v += 0.5 * (sum(0.5**k for k in range(steps)) + 0.5**steps * bootstrap - v)
    assert after_one_episode(NStepTD, n=5) == v
    v = 10.0
    for steps in (3, 2, 1):
        v += 0.5 * (sum(0.5**k for k in range(steps)) - v)
    assert after_one_episode(MonteCarlo) == v
    assert after_one_episode(LambdaReturn, lambda_=1.0) != v


@pytest.mark.parametrize(
    "make",
    [
        lambda: TD(walk(), alpha=0.0),
        lambda: TD(walk(), alpha=None),
        lambda: TDLambda(walk(), lambda_=1.5),
        lambda: TDLambda(walk(), trace="dusty"),
        lambda: NStepTD(walk(), n=0),
        lambda: MonteCarlo(walk(), gamma=0.0),
        lambda: MonteCarlo(walk(), sampling="weighted", alpha=0.1),
        lambda: MonteCarlo(walk(), features=polynomial(np.linspace(0, 1, 6), 2)),
        lambda: TD(walk(), policy=[0.5, 0.5]),
        lambda: TD(two_actions(), policy=[0.5, 0.6]),
        lambda: TD(two_actions(), policy=[0.5, 0.5], behaviour=[1.0, 0.0]),
        lambda: TrueOnlineTD(two_actions(), behaviour=[0.9, 0.1]),
        lambda: TDLambda(two_actions(), behaviour=[0.9, 0.1], trace="dutch"),
        lambda: TD(walk(), features=np.eye(7)),
        lambda: TD(gym.make("CartPole-v1")),  # its bounds are infinite: no default tiles
        lambda: TD(PositionsEnv(walk()), features=np.eye(6)),
        lambda: MonteCarlo(PositionsEnv(walk()), visits="first", alpha=0.1),
        lambda: TD(PositionsEnv(walk())).v,
        lambda: learning_curve(TD(walk()).learn(10), [0], 1, rms_error, TRUE),
        lambda: learning_curve(TD(walk()), [0], 5, rms_error, TRUE, at=[3, 2]),
        lambda: ex.model(np.eye(2), [0.5, 0.5], np.ones((2, 2)), [0, 0], 0.9),
        lambda: batch_td(np.ones((2, 1)), [1, 1], [0, 0], np.ones((2, 1)), [0.0], alpha=5.0),
    ],
)
def test_bad_input_is_named(make):
    with pytest.raises((SettingsError, SpaceError, ValueError)):
        make()
