"""The belief optimum: closed forms, an independent solution, and simulation."""

from functools import lru_cache
from itertools import product

import numpy as np
import pytest

from tdraft.agents.belief_planning import plan_belief, static_rates
from tdraft.envs.decoding.dynamics import N_COUNTS, TIME, TOKENS, draft_params, make_rollout
from tdraft.envs.decoding.sources import Difficulty, simulator_dynamics
from tdraft.kernels.rng import seed_state
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.calibration import default_difficulty, simulator_calibration
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.policy import DraftPolicy


def make_difficulty(transition, emission, acceptance) -> Difficulty:
    return Difficulty(
        np.full(2, 0.5),
        np.array(transition, float),
        np.array(emission, float),
        np.array(acceptance, float),
        np.zeros((len(acceptance), 4)),
        1.0,
    )


def make_cost(depth=8, first=1.3, slope=0.03, draft=0.05) -> CostModel:
    return CostModel(np.array([0.0, 1.0, *(first + slope * np.arange(depth))]), draft, 1e-3)


def simulate(difficulty, cost, policy: DraftPolicy, n_tokens: int, texts: int, seed=0) -> tuple[float, float]:
    """(tokens per unit of time, its standard error)."""
    params = draft_params(difficulty, simulator_calibration(difficulty), cost, n_tokens, 1.0, False)
    counts = np.zeros((texts, N_COUNTS))
    make_rollout(simulator_dynamics(), policy.decide)(
        params, policy.params, policy.memory, policy.memory.copy(), counts, seed_state(seed)
    )
    rate = counts[:, TOKENS].sum() / counts[:, TIME].sum()
    return rate, (counts[:, TOKENS] - rate * counts[:, TIME]).std() / np.sqrt(texts) / counts[:, TIME].mean()


@lru_cache
def default_plan():
    difficulty, cost = Difficulty(**default_difficulty()), make_cost()
    return difficulty, cost, plan_belief(difficulty, cost)


@pytest.mark.parametrize("acceptance", [0.1, 0.5, 0.8, 0.95])
def test_one_bin_is_the_best_static_length(acceptance):
    cost = make_cost()
    difficulty = make_difficulty([[0.9, 0.1], [0.2, 0.8]], [[1.0], [1.0]], [acceptance])
    k = np.arange(cost.max_drafted + 1)
    closed = (1 - acceptance ** (k + 1)) / (1 - acceptance) / (cost.verify[k + 1] + k * cost.draft)
    assert np.allclose(static_rates(difficulty, cost), closed)
    plan = plan_belief(difficulty, cost)
    assert plan.rate == pytest.approx(closed.max(), abs=1e-10)
    assert plan.policy_rate == pytest.approx(closed.max(), abs=1e-10)


@pytest.mark.parametrize("draft", [0.02, 0.2])
def test_known_difficulty_without_memory_by_enumeration(draft):
    """The first token shows the state of its round and rounds are alike: choose how far to draft after each of two bins."""
    cost, easy = make_cost(depth=6, draft=draft), 0.35
    acceptance, weight = (0.2, 0.9), (1 - easy, easy)
    difficulty = make_difficulty([[easy, 1 - easy]] * 2, [[0.0, 1.0], [1.0, 0.0]], acceptance)
    best = 1.0
    for verified in product(range(7), repeat=2):  # 0: drop the one token that showed the state
        tokens = sum(w * sum(a**i for i in range(k + 1)) for w, a, k in zip(weight, acceptance, verified))
        time = sum(w * (cost.verify[k + 1] + max(k, 1) * draft) for w, k in zip(weight, verified))
        best = max(best, tokens / time)
    plan = plan_belief(difficulty, cost)
    assert plan.rate == pytest.approx(best, abs=1e-10)
    assert plan.policy_rate == pytest.approx(best, abs=1e-9)


def independent_rate(difficulty: Difficulty, cost: CostModel, points=401) -> float:
    """Relative value iteration with bisection of the rate, over sequences of bins, on a grid over all beliefs."""
    grid = np.linspace(0.0, 1.0, points)
    n_bins = len(difficulty.acceptance)

    def backup(h, rate):
        def best(k, b, survival):
            after = np.interp(b * difficulty.transition[0, 0] + (1 - b) * difficulty.transition[1, 0], grid, h)
            value = after - rate * cost.verify[k + 1]
            if k > 0:
                value = np.maximum(value, after - survival - rate * cost.verify[k])
            if k < cost.max_drafted:
                draft = -rate * cost.draft
                for f in range(n_bins):
                    easy, hard = difficulty.emission[:, f]
                    p = b * easy + (1 - b) * hard
                    s = survival * difficulty.acceptance[f]
                    draft = draft + p * (s + best(k + 1, b * easy / p, s))
                value = np.maximum(value, draft)
            return value

        return 1.0 + best(0, grid, 1.0)

    low, high = 0.5, 4.0
    h = np.zeros(points)
    while high - low > 1e-7:
        rate = (low + high) / 2
        for _ in range(500):
            new = backup(h, rate)
            change, h = new - h, new - new[0]
            if change.min() > 0 or change.max() < 0 or np.ptp(change) < 1e-12:
                break
        low, high = (rate, high) if change.min() > 0 else (low, rate)
    return low


@pytest.mark.parametrize("draft", [0.05, 0.3])
def test_agrees_with_an_independent_solution(draft):
    cost = make_cost(depth=2, first=1.2, slope=0.2, draft=draft)
    difficulty = make_difficulty([[0.85, 0.15], [0.25, 0.75]], [[0.2, 0.8], [0.7, 0.3]], [0.15, 0.9])
    plan = plan_belief(difficulty, cost, beliefs=161)
    assert plan.rate == pytest.approx(independent_rate(difficulty, cost), abs=2e-5)
    assert plan.rate >= static_rates(difficulty, cost).max()


def test_the_error_of_the_grid_is_small_and_one_sided():
    difficulty, cost, plan = default_plan()
    finer = plan_belief(difficulty, cost, beliefs=161)
    assert plan.coarse_rate >= plan.rate >= finer.rate >= finer.policy_rate - 1e-9  # interpolating a convex value
    assert plan.error < 1e-5 and finer.error < plan.error + 1e-9
    assert plan.rate - finer.rate < plan.error


def test_simulation_reaches_the_optimum_on_long_texts():
    difficulty, cost, plan = default_plan()
    rate, se = simulate(difficulty, cost, plan.policy, n_tokens=16384, texts=150)
    assert se < 0.01 * plan.rate
    assert abs(rate - plan.rate) < 3 * se + 0.001 * plan.rate  # 0.1% is generous for the clipped last round of 16384 tokens
    short, se = simulate(difficulty, cost, plan.policy, n_tokens=512, texts=2000)
    assert 0.98 * plan.rate < short < plan.rate + 3 * se


def test_no_static_length_is_better():
    from numba import njit

    @njit
    def decide(params, memory, obs):
        return 1 if obs[ob.DRAFTED] < params[0][0] else 0

    difficulty, cost, plan = default_plan()
    rates = static_rates(difficulty, cost)
    assert plan.policy_rate > 1.1 * rates.max()
    for k in (0, 3, int(rates.argmax())):
        policy = DraftPolicy("static", decide, (np.array([float(k)]),))
        rate, se = simulate(difficulty, cost, policy, 16384, 100)
        assert abs(rate - rates[k]) < 3 * se + 0.001 * rate
    for n_tokens in (64, 512):
        ours, se = simulate(difficulty, cost, plan.policy, n_tokens, 2000)
        assert ours > simulate(difficulty, cost, policy, n_tokens, 2000)[0] + 3 * se


def test_random_simulators_obey_the_order_of_rates():
    rng = np.random.default_rng(0)
    for _ in range(8):
        bins, depth = int(rng.integers(1, 5)), int(rng.integers(1, 6))
        difficulty = make_difficulty(
            rng.dirichlet([1, 1], 2), rng.dirichlet(np.full(bins, 0.5), 2), np.sort(rng.random(bins)) * 0.98
        )
        cost = make_cost(depth, 1 + rng.random() / 2, rng.random() / 5, rng.random() / 4)
        plan = plan_belief(difficulty, cost)
        assert static_rates(difficulty, cost).max() <= plan.rate + 1e-10
        assert plan.policy_rate <= plan.rate + 1e-10 <= plan.coarse_rate + 2e-10
        assert plan.error < 2e-3 * plan.rate


def test_the_order_of_bins_does_not_matter():
    difficulty, cost, plan = default_plan()
    order = np.array([3, 0, 5, 1, 4, 2])
    shuffled = difficulty._replace(
        emission=difficulty.emission[:, order], acceptance=difficulty.acceptance[order], features=difficulty.features[order]
    )
    assert plan_belief(shuffled, cost).rate == pytest.approx(plan.rate, abs=1e-10)


def test_impossible_problems_say_so():
    difficulty, cost, _ = default_plan()
    with pytest.raises(ValueError, match="able to change and to stay"):
        plan_belief(difficulty._replace(transition=np.eye(2)), cost)
    with pytest.raises(ValueError, match="use fewer bins or tokens"):
        plan_belief(difficulty, make_cost(depth=60))
    with pytest.raises(ValueError, match="odd"):
        plan_belief(difficulty, cost, beliefs=40)
    with pytest.raises(ValueError, match="sum to 1"):
        plan_belief(difficulty._replace(emission=np.ones((2, 6))), cost)
