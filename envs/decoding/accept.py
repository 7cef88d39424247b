"""tdraft/Accept-v0: for each drafted token in turn, which test decides whether it stays?

One step decides one drafted token and emits one token: the drafted one, or one in its place, which ends the round;
after a round whose tokens all stay the bonus token follows. Actions: 0 the exact test min(1, p/q); 1..L a lenience l,
min(1, p/(l q)); L + 1 accept; L + 2 discard and emit a draw from p. A rejection by a test emits from norm((p - q)_+),
whichever test it was.

    reward = tokens / rho - time - price * charge,      time = T(k + 1) + k t_d for a round, in plain steps of the
    target

The charge is `kernels.acceptance.token_charge`: an expectation computed from p and q, not a sample; its mean over the
drafted token is never below KL(p || emitted) of whatever the policy does at that position. An episode emits exactly N
tokens and terminates. gamma is 1.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tdraft.envs.compiled import CompiledEnv, env_rng
from tdraft.kernels import acceptance as rule
from tdraft.kernels.rng import uniform
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.sampling import sample

from . import accept_dynamics as dynamics
from .accept_dynamics import FIELDS, KL_CEILING, N_PACE, N_TABLE, POSITION, AcceptParams
from .accept_sources import Live, LiveSource, Simulator

LENIENCES = (0.95, 0.87, 0.75, 0.6, 0.42, 0.25, 0.1)
DEFAULT_COST = CostModel(np.array([0.0, 1.0, *(1.05 + 0.03 * np.arange(4))]), draft=0.08, unit_seconds=1e-3)


class AcceptEnv(gym.Env):
    """Gymnasium's view of the acceptance process.

    :param source: `Simulator()` (default), `Live(...)`, or any object with `vocab_size, reset, round, extend`
        (`LiveSource`)
    :param n_tokens: N of an episode with a live source; the simulator's is its `length`
    :param leniences: l of actions 1..L, each in (0, 1)
    :param cost: prices; K, the tokens drafted a round, is `cost.max_drafted`
    :param price: of a nat of charge, in plain steps, >= 0
    :param budget: nats an episode may be charged, or None. A decision whose charge isn't affordable, or infinite, is
        performed as the exact test
    :param reference_rate: rho in tokens per plain step; by default that of the exact test on the simulator's texts, 1
        for a live source
    :param observe: "vector" ((13,) float64, `FIELDS`) or "table" (one of `N_TABLE` bins; times `N_PACE`
        with a budget)
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        source: Simulator | LiveSource | None = None,
        *,
        n_tokens: int = 64,
        leniences: tuple[float, ...] = LENIENCES,
        cost: CostModel = DEFAULT_COST,
        price: float = 0.0,
        budget: float | None = None,
        reference_rate: float | None = None,
        observe: str = "vector",
        render_mode: None = None,
    ):
        self.source = Simulator() if source is None else source
        if not all(0.0 < lenience < 1.0 for lenience in leniences):
            raise ValueError(f"leniences must lie in (0, 1), got {leniences} (exact and accept are actions already)")
        if not (price >= 0.0 and np.isfinite(price)):
            raise ValueError(f"price must be >= 0 and finite, got {price}")
        if budget is not None and not budget >= 0.0:
            raise ValueError(f"budget must be >= 0 nats, or None for no budget, got {budget}")
        if observe not in ("vector", "table"):
            raise ValueError(f'observe must be "vector" or "table", got "{observe}"')
        if cost.max_drafted < 1:
            raise ValueError("cost must price at least one drafted token: verify needs three entries or more")
        if n_tokens < 2:
            raise ValueError(f"n_tokens must be at least 2, got {n_tokens}")
        if reference_rate is not None and not reference_rate > 0:
            raise ValueError(f"reference_rate must be > 0 tokens per plain step, got {reference_rate}")
        if render_mode is not None:
            raise ValueError(f"render_mode must be None, got {render_mode!r}")
        self.cost, self.leniences, self.observe = cost, tuple(leniences), observe
        self.render_mode, self._l = None, np.asarray(leniences, np.float64)
        self.live = None if isinstance(self.source, Simulator) else self.source
        if isinstance(self.source, Simulator):
            p, q = self.source.draw()
            rate = exact_rate(p, q, cost)
        else:
            p, q = (np.zeros((1, n_tokens, self.source.vocab_size)) for _ in range(2))
            rate = 1.0
        features, accept, charge = dynamics.fill_tables(p, q, self._l)
        self.params = AcceptParams(
            *(p, q, features, accept, charge, cost.verify, float(cost.draft)),
            *(float(reference_rate or rate), float(price), np.inf if budget is None else float(budget)),
            *(np.zeros(cost.max_drafted, np.int64), np.zeros(4, np.int64), np.zeros(2), np.zeros(len(FIELDS))),
        )
        self.n_actions = accept.shape[-1]
        self.action_space = spaces.Discrete(self.n_actions)
        self.observation_space: spaces.Space = spaces.Discrete(N_TABLE * (1 if budget is None else N_PACE))
        if observe == "vector":
            k, h = float(cost.max_drafted), float(np.log(p.shape[-1]) + 1e-9)
            high = np.array([1, 1, 1, h, h, 1, KL_CEILING, KL_CEILING, 1, k, k, 1, 1], np.float64)
            self.observation_space = spaces.Box(np.zeros(len(FIELDS)), high, dtype=np.float64)
        self._rng = np.zeros(4, np.uint64)

    def compiled(self) -> CompiledEnv | None:
        """The same process for the compiled training loop; None with a live source."""
        if self.live is not None:
            return None
        table = self.observe == "table"
        reset = dynamics.reset_table if table else dynamics.reset_vector
        step = dynamics.step_table if table else dynamics.step_vector
        return CompiledEnv(self.params, reset, step, 0, mutable=("drafts", "cursor", "spent", "obs"))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None or not self._rng.any():
            self._rng[:] = env_rng(self.np_random)
        if self.live is None:
            dynamics.reset_vector(self.params, self._rng)
        else:
            self.live.reset(self._rng)
            dynamics.start(self.params, 0)
            self._draft_live(self.live)
            dynamics.observe(self.params)
        return self._observation(), {}

    def step(self, action):
        if not self._rng.any():
            raise gym.error.ResetNeeded("call reset() before step()")
        if not (np.ndim(action) == 0 and 0 <= int(action) < self.n_actions):
            raise ValueError(f"action must be an integer in 0..{self.n_actions - 1}, got {action!r}")
        position = self.params.cursor[POSITION]
        if position >= self.params.p.shape[1]:
            raise gym.error.ResetNeeded("the episode has terminated: call reset()")
        if self.live is None:
            reward, terminated, time = dynamics.advance(self.params, int(action), self._rng)
        else:
            reward, terminated, time = self._advance_live(self.live, int(action))
        info = {
            "duration": time,
            "seconds": time * self.cost.unit_seconds,
            "tokens": int(self.params.cursor[POSITION] - position),
            "kl": float(self.params.spent[1]),
        }
        return self._observation(), float(reward), bool(terminated), False, info

    def _observation(self):
        return np.int64(dynamics.table(self.params)) if self.observe == "table" else self.params.obs.copy()

    def _draft_live(self, source: LiveSource) -> None:
        """Ask for a round and write its distributions where the compiled functions look for them."""
        p, q, features, accept, charge = (array[0] for array in self.params[:5])
        _, t, _, k = (int(x) for x in self.params.cursor)
        p[t : t + k + 1], q[t : t + k], self.params.drafts[:k] = source.round(self._rng, k)
        for i in range(t, t + k):
            dynamics.fill_position(p[i], q[i], self._l, features[i], accept[i], charge[i])

    def _advance_live(self, source: LiveSource, action: int) -> tuple[float, bool, float]:
        """`dynamics.advance` with a source that must be told which tokens were emitted."""
        params, rng = self.params, self._rng
        _, t, j, k = (int(x) for x in params.cursor)
        p, q = params.p[0, t], params.q[0, t]
        stays, performed, time = dynamics.decide(params, action, rng)
        if stays:
            emitted = [int(params.drafts[j])]
        elif performed == self.n_actions - 1:
            emitted = [int(sample(p, uniform(rng)))]
        else:
            emitted = [int(sample(rule.residual(p, q, rule.accept_with_lenience(p, q, 1.0)), uniform(rng)))]
        if stays and j + 1 == k:
            emitted.append(int(sample(params.p[0, t + 1], uniform(rng))))
        over, tokens, last, terminated = dynamics.move(params, stays)
        source.extend(emitted)
        if tokens > len(emitted):  # a last plain step
            bonus, _, _ = source.round(rng, 0)
            source.extend([int(sample(bonus[0], uniform(rng)))])
        if not terminated:
            if over:
                self._draft_live(source)
            dynamics.observe(params)
        time += last
        return tokens / params.rho - time - params.price * params.spent[1], terminated, time


def exact_rate(p: np.ndarray, q: np.ndarray, cost: CostModel) -> float:
    """Tokens per plain step of the exact test on texts p, q (C, N, V): a ratio of sums."""
    beta = np.minimum(p, q).sum(-1)
    accept = np.repeat(beta[..., None], cost.max_drafted, -1)
    time, _ = dynamics.episode_totals(accept, np.zeros_like(accept), cost.verify, cost.draft)
    return beta.size / time.sum()


__all__ = ["DEFAULT_COST", "FIELDS", "LENIENCES", "N_TABLE", "AcceptEnv", "Live", "Simulator"]
