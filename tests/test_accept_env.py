"""Accept-v0: checkers, compiled = interpreted, exactness by enumeration, rewards, budgets, totals, live source; the rules."""

from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import tdraft.envs  # noqa: F401
from tdraft.agents import Agent, ExpectedSarsa, QLearning
from tdraft.agents.acceptance import Outcome, evaluate, front, informed_front, learn_policy, lenience, mentored, tv_optimal
from tdraft.agents.acceptance_comparison import gap, hull
from tdraft.envs.compiled import leaves
from tdraft.envs.decoding import accept_dynamics as dynamics
from tdraft.envs.decoding.accept import AcceptEnv, Live, Simulator
from tdraft.kernels import acceptance as rule
from tdraft.models.decoding.cost import CostModel

TEXTS = Simulator(texts=8, length=12, vocabulary=5, seed=3)


def cost(depth: int) -> CostModel:
    return CostModel(np.array([0.0, 1.0, *(1.1 + 0.05 * np.arange(depth))]), 0.1, 1e-3)


def pairs(count: int = 40, vocabulary: int = 6) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs p, q: near and far, and some tokens of probability zero."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        p = rng.dirichlet(np.full(vocabulary, 0.7))
        q = (1 - i / count) * p + i / count * rng.dirichlet(np.full(vocabulary, 0.7))
        if i % 4 == 1:
            p[0] = 0.0
        if i % 4 > 1:
            q[1] = 0.0
        if i % 4 == 3:
            p[2] = p[3] = 0.0
        found.append((p / p.sum(), q / q.sum()))
    return found


# --- the env


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"observe": "table"}, {"budget": 0.5, "observe": "table"}])
def test_both_checkers_pass(settings):
    env = gym.make("tdraft/Accept-v0", source=TEXTS, **settings).unwrapped
    check_env(env)
    sb3_check_env(env)


@pytest.mark.parametrize("kind", [QLearning, ExpectedSarsa])
@pytest.mark.parametrize("budget", [None, 0.3])
def test_compiled_equals_interpreted(kind, budget):
    def make() -> Agent:
        env = AcceptEnv(TEXTS, observe="table", price=1.0, budget=budget)
        return kind(env, seed=4, gamma=1.0, alpha=0.1, epsilon=0.3)

    compiled, interpreted = make(), make()
    assert compiled.path == "compiled"
    interpreted.compiled = None
    compiled.learn(6000)
    interpreted.learn(6000)
    for (name, a), (_, b) in zip(leaves(compiled.learner), leaves(interpreted.learner), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert compiled.learner.clock[0] == 6000 and np.any(compiled.learner.q != 0)


@pytest.mark.parametrize(("vocabulary", "length", "depth"), [(2, 4, 3), (3, 4, 2), (3, 3, 4)])
def test_the_exact_rule_emits_the_targets_law(vocabulary, length, depth):
    """The joint law of a whole text, over all drafts and coins, is the product of p; the KL of every position is zero."""
    env = AcceptEnv(Simulator(texts=1, length=length, vocabulary=vocabulary, seed=5), cost=cost(depth))
    law = emitted_law(env, dynamics.EXACT)
    p = env.params.p[0]
    expected = {text: np.prod(p[np.arange(length), text]) for text in product(range(vocabulary), repeat=length)}
    assert max(abs(law.get(text, 0.0) - probability) for text, probability in expected.items()) < 1e-12
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    outcome = evaluate(env, lambda seen: np.zeros(len(seen), int), "exact")
    assert outcome.kl_per_token <= 1e-12
    lossy = emitted_law(env, env.n_actions - 2)  # accept all: the enumeration sees that it is another law
    assert max(abs(lossy[text] - probability) for text, probability in expected.items()) > 1e-3


def emitted_law(env: AcceptEnv, action: int) -> dict[tuple[int, ...], float]:
    """Probability of every text that one action everywhere emits: drafts and coins enumerated, the cursor moved by the env."""
    params, law = env.params, {}
    dynamics.start(params, 0)

    def emit(text, weight, cursor):
        """Before the token at the cursor is drafted."""
        t = cursor[dynamics.POSITION]
        for x in np.flatnonzero(params.q[0, t]):
            decide((*text,), x, weight * params.q[0, t, x], cursor)

    def decide(text, x, weight, cursor):
        t = cursor[dynamics.POSITION]
        accept = params.accept[0, t, x, action]
        p, q = params.p[0, t], params.q[0, t]
        rejected = rule.residual(p, q, rule.accept_with_lenience(p, q, 1.0))
        for stays, tokens in ((True, {x: accept}), (False, {y: (1 - accept) * r for y, r in enumerate(rejected)})):
            params.cursor[:] = cursor
            _, count, _, terminated = dynamics.move(params, stays)
            after = tuple(int(c) for c in params.cursor)
            for y, chance in tokens.items():
                if chance > 0.0:
                    for rest in product(
                        range(p.size), repeat=count - 1
                    ):  # the bonus token, and a last plain step, are the target's
                        more = np.prod([params.p[0, t + 1 + i, z] for i, z in enumerate(rest)])
                        whole, total = (*text, int(y), *rest), weight * chance * more
                        if terminated:
                            law[whole] = law.get(whole, 0.0) + total
                        else:
                            emit(whole, total, after)

    emit((), 1.0, tuple(int(c) for c in params.cursor))
    return law


@pytest.mark.parametrize("budget", [None, 0.4])
def test_the_return_is_tokens_over_rho_minus_time_and_price(budget):
    rng = np.random.default_rng(1)
    env = AcceptEnv(TEXTS, price=0.7, budget=budget, reference_rate=1.9)
    spent = []
    for seed in range(60):
        env.reset(seed=seed)
        total, tokens, time, charge, terminated = 0.0, 0, 0.0, 0.0, False
        while not terminated:
            _, reward, terminated, truncated, info = env.step(int(rng.integers(env.n_actions)))
            total, tokens, time, charge = total + reward, tokens + info["tokens"], time + info["duration"], charge + info["kl"]
            assert not truncated and (budget is None or charge <= budget + 1e-12)
        assert tokens == TEXTS.length
        assert total == pytest.approx(tokens / 1.9 - time - 0.7 * charge, abs=1e-9)
        spent.append(charge)
        with pytest.raises(gym.error.ResetNeeded, match="has terminated"):
            env.step(0)
    assert max(spent) > (0.5 if budget is None else 0.2)  # budgets are of use, and needed


@pytest.mark.parametrize("budget", [0.0, 0.05])
def test_a_budget_is_never_exceeded_whatever_the_policy_wants(budget):
    """A policy that always accepts, in 200 episodes: with nothing to spend it is the exact test."""
    env = AcceptEnv(TEXTS, budget=budget, observe="table")
    for seed in range(200):
        env.reset(seed=seed)
        terminated = False
        while not terminated:
            _, _, terminated, _, info = env.step(env.n_actions - 2)
            assert budget > 0 or info["kl"] == 0.0
        assert env.params.spent[0] <= budget + 1e-12


@pytest.mark.parametrize("action", [0, 3, 8])
def test_expected_time_is_what_episodes_take(action):
    """4000 episodes; the mean time lies within 4 standard errors of the exact expectation over all texts."""
    env = AcceptEnv(Simulator(texts=6, length=10, vocabulary=4, seed=6), cost=cost(3))
    exact = evaluate(env, lambda seen: np.full(len(seen), action), "constant").time
    rng = np.zeros(4, np.uint64)
    rng[:] = np.random.default_rng(2).integers(1, 2**63, 4)
    errors = np.empty(4000)
    for i in range(len(errors)):
        dynamics.reset_vector(env.params, rng)
        text, time, terminated = env.params.cursor[dynamics.TEXT], 0.0, False
        while not terminated:
            _, terminated, duration = dynamics.advance(env.params, action, rng)
            time += duration
        errors[i] = time - exact[text]
    assert abs(errors.mean()) <= 4 * errors.std() / np.sqrt(len(errors)) + 1e-9  # nothing varies where all is accepted


def test_the_mean_charge_is_never_below_the_kl():
    """Any choice of an action for each drafted token: 40 pairs p, q, 200 policies each; equality where all is accepted."""
    rng, leniences = np.random.default_rng(3), np.array([0.7, 0.3])
    for p, q in pairs():
        features, accept, charge = np.empty(5), np.empty((p.size, 5)), np.empty((p.size, 5))
        dynamics.fill_position(p, q, leniences, features, accept, charge)
        exact = rule.residual(p, q, rule.accept_with_lenience(p, q, 1.0))
        tokens = np.arange(p.size)
        for _ in range(200):
            actions = rng.integers(5, size=p.size)
            b = accept[tokens, actions]
            discarded = q[actions == 4].sum()
            e = q * b + (1.0 - q @ b - discarded) * exact + discarded * p
            with np.errstate(invalid="ignore"):
                mean = np.sum((q * charge[tokens, actions])[q > 0])
            assert rule.divergence(p, e) <= mean + 1e-12
        everything = np.sum((q * charge[:, 3])[q > 0])
        assert everything == pytest.approx(rule.divergence(p, q), abs=1e-9)
        assert np.all(charge[:, 0] == 0.0)


def test_a_live_source_has_the_simulators_law():
    """Two callables that know only how long the text is, 4000 texts of 4 tokens: the mean time is the exact expectation's and
    the frequency of each of 81 texts the product of p, within 4 standard errors (by chi-square: mean 80, deviation 12.6)."""
    p, q = (array[0] for array in Simulator(texts=1, length=4, vocabulary=3, seed=7, sharpness=(0.3, 1.0)).draw())
    live = Live(lambda context: p[min(len(context), 3)], lambda context: q[len(context)], [[]], 3)
    env, runs = AcceptEnv(live, n_tokens=4, cost=cost(2)), 4000
    times, seen = np.empty(runs), np.zeros((3,) * 4)
    env.reset(seed=0)
    for i in range(runs):
        time, terminated = 0.0, False
        while not terminated:
            _, _, terminated, _, info = env.step(dynamics.EXACT)
            time += info["duration"]
        times[i] = time
        seen[tuple(live.context)] += 1
        env.reset()
    accept = np.repeat(np.minimum(p, q).sum(-1)[None, :, None], 2, -1)
    expected, _ = dynamics.episode_totals(accept, np.zeros_like(accept), env.cost.verify, env.cost.draft)
    assert abs(times.mean() - expected[0]) < 4 * times.std() / np.sqrt(runs)
    law = np.einsum("a,b,c,d->abcd", *p) * runs
    assert abs(np.sum((seen - law) ** 2 / law) - 80) < 4 * np.sqrt(160)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"leniences": (0.5, 1.0)}, r"leniences must lie in \(0, 1\)"),
        ({"price": -1.0}, "price must be >= 0"),
        ({"price": np.inf}, "price must be >= 0 and finite"),
        ({"budget": -0.1}, "budget must be >= 0"),
        ({"observe": "words"}, 'got "words"'),
        ({"cost": CostModel(np.array([0.0, 1.0]), 0.1, 1.0)}, "at least one drafted token"),
        ({"n_tokens": 1}, "n_tokens must be at least 2"),
        ({"reference_rate": 0.0}, "reference_rate must be > 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        AcceptEnv(TEXTS, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1}, "length must be at least 2"),
        ({"stay": 1.2}, r"stay must be in \[0, 1\]"),
        ({"noises": ()}, "noises must be"),
    ],
)
def test_bad_texts(settings, message):
    with pytest.raises(ValueError, match=message):
        Simulator(**settings)


def test_bad_models_and_actions():
    with pytest.raises(ValueError, match="at least one context"):
        Live(lambda c: np.ones(2) / 2, lambda c: np.ones(2) / 2, [], 2)
    env = AcceptEnv(Live(lambda c: np.ones(3), lambda c: np.ones(3) / 3, [[]], 3))
    with pytest.raises(ValueError, match="3 probabilities that sum to 1"):
        env.reset(seed=0)
    env = AcceptEnv(TEXTS)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must be an integer in 0\.\.9, got 10"):
        env.step(10)


# --- the rules


@pytest.mark.parametrize("budget", [0.0, 1e-3, 0.02, 0.2, 3.0])
def test_mentored_spends_its_budget(budget):
    for p, q in pairs():
        b, s = mentored(p, q, np.array([budget, 0.0]))
        everything = rule.divergence(p, q)
        if budget > 1.0 and np.isinf(everything):
            continue  # where q misses a token, a KL this large needs a rejection rate of e^-50, below float64's 1 - sum q b
        e = rule.emitted(q, b, s)
        assert e.sum() == pytest.approx(1.0, abs=1e-12) and s.min() >= 0.0
        assert rule.divergence(p, e) == pytest.approx(min(budget, everything), abs=1e-9)
        if everything > budget:  # no rule that this file knows rejects less at this KL
            for x in np.linspace(0.0, 1.0, 21):
                for other in (tv_optimal, lenience):
                    bo, so = other(p, q, np.array([x, 0.0]))
                    if rule.divergence(p, rule.emitted(q, bo, so)) <= budget:
                        assert rule.rejection(q, b) <= rule.rejection(q, bo) + 1e-9


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_tv_optimal_lies_on_its_front(share):
    """TV(e, p) = TV(p, q) - R at the rejection rate R that was asked for."""
    for p, q in pairs():
        distance = 0.5 * np.abs(p - q).sum()
        b, s = tv_optimal(p, q, np.array([share * distance, 0.0]))
        assert rule.rejection(q, b) == pytest.approx(share * distance, abs=1e-12)
        assert 0.5 * np.abs(rule.emitted(q, b, s) - p).sum() == pytest.approx((1 - share) * distance, abs=1e-12)


def test_informed_is_never_below_a_rule_that_it_can_choose():
    """For every text: time + price * KL of the informed choice against mentored rules of one lenience everywhere."""
    source = Simulator(texts=12, length=16, vocabulary=6, seed=8)
    p, q = source.draw()
    for price in (0.3, 3.0):
        best = informed_front(p, q, [price], cost(4))[0]
        total = best.time + price * best.kl
        for other in front("mentored-price", p, q, cost(4)):
            assert np.all(total <= other.time + price * other.kl + 2e-3 * other.time)  # 0.2% for its grid of 64 leniences
        exact = front("lenience", p, q, cost(4))[0]
        assert np.all(total <= exact.time + price * exact.kl + 1e-12)


# --- comparing


def test_hull_and_gap_by_hand():
    def outcome(kl, time):
        return Outcome("x", 0.0, 10, np.array(time, float), np.array(kl, float), np.zeros(2))

    exact, middle, most = outcome([0, 0], [8, 8]), outcome([1, 1], [7, 7]), outcome([2, 2], [4, 4])
    worse, infinite = outcome([3, 3], [5, 5]), outcome([np.inf, 0], [1, 1])
    vertices = hull([most, infinite, middle, exact, worse])
    assert [v.time.mean() for v in vertices] == [8, 4]  # the middle lies above the line
    found = gap(outcome([1, 1], [5, 5]), vertices)
    assert (found.rate, found.percent, found.se) == (pytest.approx(10 / 6), pytest.approx(20.0), pytest.approx(0.0, abs=1e-9))
    assert gap(outcome([9, 9], [4, 4]), vertices).percent == pytest.approx(0.0)
    with pytest.raises(ValueError, match="use the same texts"):
        gap(Outcome("x", 0.0, 10, np.ones(3), np.ones(3), np.ones(3)), vertices)


@pytest.mark.slow
def test_the_learned_policy_lies_above_lenience_and_typical():
    """Price 1, 6 M steps on 512 texts, judged exactly on 64 others; standard errors over those, of paired differences (0.2%)."""
    test = Simulator(texts=64, seed=2)
    agent = learn_policy(Simulator(texts=512, seed=1), 1.0, steps=6_000_000)
    learned = evaluate(AcceptEnv(test, observe="table"), lambda seen: agent.predict(seen)[0], "learned", 1.0)
    p, q = test.draw()
    exact = front("lenience", p, q)[0]
    for name in ("lenience", "typical", "typical-residual"):
        found = gap(learned, hull([exact, *front(name, p, q)]))
        assert found.percent > 4 * found.se, f"{name}: {found}"
    bound = gap(learned, hull([exact, *informed_front(p, q, np.geomspace(0.02, 200.0, 33).tolist())]))
    assert -6.0 < bound.percent < 0.0, f"informed: {bound}"
