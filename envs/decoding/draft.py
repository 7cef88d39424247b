"""tdraft/Draft-v0: draft one more token, or verify now?

Actions: 0 verify what is drafted (with nothing drafted: a plain step), 1 draft one more token (with K drafted: verify), 2 verify
without the newest token (with nothing drafted: a plain step). An episode emits exactly N tokens and terminates; the reward is
tokens / rho - time, time in plain decoding steps of the target, and gamma is 1 for every agent (docs/decoding.md says why).
"""

from copy import copy
from functools import cached_property, lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numba import njit

from tdraft.envs.compiled import CompiledEnv, env_rng
from tdraft.kernels.jit import Box
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.calibration import default_difficulty, simulator_calibration
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.trace import Trace

from .dynamics import CALLS, DRAFTED, TIME, TOKENS, Dynamics, draft_params
from .sources import Difficulty, simulator_dynamics, trace_dynamics, trace_source

_INTEGERS = (int, np.integer)  # once: `int | np.integer` is a new object in every step
DEFAULT_COST = CostModel(np.array([0.0, 1.0, *(1.3 + 0.03 * np.arange(9))]), draft=0.05, unit_seconds=1e-3)


class Simulator:
    """Texts of hidden, changing difficulty (`sources.Difficulty`).

    :param difficulty: parameters of the chain, by default two clearly different states
    :param cost: prices; K is `cost.max_drafted`
    """

    name = "simulator"

    def __init__(self, difficulty: Difficulty | None = None, cost: CostModel = DEFAULT_COST):
        self.arrays = Difficulty(**default_difficulty()) if difficulty is None else difficulty
        self.calibration = simulator_calibration(self.arrays)
        self.cost = cost
        self.n_tokens = 64

    @property
    def dynamics(self) -> Dynamics:
        return simulator_dynamics()


class Replay:
    """A recorded trace, whose replay is exact under every policy.

    :param trace: from `Trace.load` or `record`
    :param calibration: fitted to the *training* trace
    :param cost: prices; its K must not exceed the trace's
    :param shuffle: draw contexts at random (training), or take them in order (evaluation)
    """

    name = "trace"

    def __init__(self, trace: Trace, calibration: ob.Calibration, cost: CostModel, *, shuffle: bool = True):
        _, self.n_tokens, depth = trace.shape
        if cost.max_drafted > depth:
            raise ValueError(
                f"the cost model prices drafts of {cost.max_drafted} tokens, the trace holds {depth}: record longer ones"
            )
        self.arrays = trace_source(trace, calibration, shuffle=shuffle)
        self.calibration = calibration
        self.cost = cost
        self.trace = trace

    def in_order(self) -> "Replay":
        """The same contexts one after the other; the predictions are shared, not made again."""
        other = copy(self)
        other.arrays = self.arrays._replace(shuffle=False)
        return other

    @property
    def dynamics(self) -> Dynamics:
        return trace_dynamics()


Source = Simulator | Replay


def observation_space(n_tokens: int, max_drafted: int) -> spaces.Box:
    """Bounds of the observation, entry by entry as `observation.FIELDS` names them."""
    k, n = float(max_drafted), float(n_tokens)
    low = np.zeros(ob.SIZE)
    low[ob.LAST_DRAFTED] = -1.0
    high = np.array([k, 1.0, 25.0, 64.0, 64.0, 1.0, 1.0, 1.0, k, k, k, max(k, 2.0), 25.0, 1.0, n])
    return spaces.Box(low, high, dtype=np.float64)


def default_rate(cost: CostModel) -> float:
    """A reference rate when none is known: one token a plain step."""
    return 1.0 / cost.verify[1]


@lru_cache
def _boxed(dynamics: Dynamics):
    """The dynamics for calls from Python: `begin(box)` and `act(box, action)` on a `Box` of (params, rng)."""
    begin_text, act_once = dynamics.begin, dynamics.act

    @njit
    def begin(box):
        params, rng = box.value
        begin_text(params, rng)

    @njit
    def act(box, action):
        """:return: reward, terminated, duration, tokens emitted and drafted ones accepted: both 0 unless a round has ended"""
        params, rng = box.value
        drafted = params.obs[ob.DRAFTED]
        reward, terminated, duration = act_once(params, action, rng)
        if params.obs[ob.DRAFTED] > drafted:
            return reward, terminated, duration, 0, 0
        return reward, terminated, duration, int(params.outcome[0]), int(params.outcome[1])

    return begin, act


class DraftEnv(gym.Env):
    """Gymnasium's view of the compiled decision process.

    :param source: `Simulator()` (default), `Replay(trace, calibration, cost)`, or `Live` through `LiveDraftEnv`
    :param n_tokens: N, tokens in an episode; by default the source's
    :param reference_rate: rho in tokens per plain step; by default 1. The best static length's rate keeps values centred
    :param expected_reward: reward the expected number of tokens of a verification in place of the sampled one
    :param shaped: pay the predicted tokens of a draft when it is drafted and settle the difference when it is verified: a
        potential (Ng, Harada & Russell 1999), so that every policy's return and the optimal policy stay what they are
    :param observe: "vector", or "tokens" for a dict with the identities of the last three tokens as well (traces only)
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012

    def __init__(
        self,
        source: Source | None = None,
        *,
        n_tokens: int | None = None,
        reference_rate: float | None = None,
        expected_reward: bool = False,
        shaped: bool = False,
        observe: str = "vector",
        render_mode: str | None = None,
    ):
        self.source = Simulator() if source is None else source
        cost = self.source.cost
        n_tokens = self.source.n_tokens if n_tokens is None else n_tokens
        if n_tokens < 1 or (isinstance(self.source, Replay) and n_tokens > self.source.n_tokens):
            raise ValueError(f"n_tokens must be in 1..{self.source.n_tokens} for this source, got {n_tokens}")
        rate = default_rate(cost) if reference_rate is None else reference_rate
        if not rate > 0:
            raise ValueError(f"reference_rate must be > 0 tokens per plain step, got {reference_rate}")
        if observe not in ("vector", "tokens"):
            raise ValueError(f'observe must be "vector" or "tokens", got "{observe}"')
        if observe == "tokens" and not isinstance(self.source, Replay):
            raise ValueError('observe="tokens" needs a source with tokens; the simulator has none: use observe="vector"')
        if render_mode not in (None, "ansi"):
            raise ValueError(f'render_mode must be None or "ansi", got "{render_mode}"')
        self.render_mode, self.observe = render_mode, observe
        self.params = draft_params(self.source.arrays, self.source.calibration, cost, n_tokens, rate, expected_reward, shaped)
        self._rng = np.zeros(4, np.uint64)
        self.action_space = spaces.Discrete(ob.N_ACTIONS)
        self.observation_space: spaces.Space = observation_space(n_tokens, cost.max_drafted)
        if observe == "tokens":
            self.observation_space = spaces.Dict(
                {"vector": self.observation_space, "tokens": spaces.MultiDiscrete([1 << 20] * 3)}
            )
        self._line = ""
        self._ready = False  # in the middle of an episode

    @cached_property
    def _box(self) -> Box:
        """Holds the arrays of `params` and `_rng` from the first reset on: change them in place, never replace them."""
        return Box((self.params, self._rng))

    def compiled(self) -> CompiledEnv | None:
        """The same process for the compiled training loop; None where tokens are observed."""
        if self.observe == "tokens":
            return None
        dynamics = self.source.dynamics
        return CompiledEnv(self.params, dynamics.reset, dynamics.step, mutable=("obs", "cursor", "outcome"))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None or not self._rng.any():
            self._rng[:] = env_rng(self.np_random)
        begin, _ = _boxed(self.source.dynamics)
        begin(self._box)
        self._line, self._ready = "", True
        return self._observe(), {}

    def step(self, action):
        if not self._ready:
            raise gym.error.ResetNeeded("no episode has begun, or it has ended: call reset() before step()")
        if not (isinstance(action, _INTEGERS) or self.action_space.contains(action)) or not 0 <= action < ob.N_ACTIONS:
            raise ValueError(f"action must be 0 (verify), 1 (draft) or 2 (verify without the newest), got {action!r}")
        _, act = _boxed(self.source.dynamics)
        reward, terminated, duration, tokens, accepted = act(self._box, int(action))
        if terminated:
            self._ready = False
        if self.render_mode is not None:
            self._line += f"|{tokens} " if tokens else "d"
        info = {"duration": duration, "seconds": duration * self.source.cost.unit_seconds, "tokens": tokens, "accepted": accepted}
        return self._observe(), reward, terminated, False, info

    def render(self):
        """The rounds so far: a `d` for each drafted token, then the tokens that its verification emitted."""
        return self._line if self.render_mode == "ansi" else None

    def _observe(self):
        if self.observe == "vector":
            return self.params.obs.copy()
        return {"vector": self.params.obs.copy(), "tokens": self._tokens()}

    def _tokens(self) -> np.ndarray:
        """The last three tokens, newest first: drafted ones and the text before them, (3,) int64."""
        assert isinstance(self.source, Replay)
        trace, (c, n) = self.source.trace, self.params.cursor[:2].astype(int)
        drafted = int(self.params.obs[ob.DRAFTED])
        text = np.concatenate([trace.prompts[c, -2:], trace.tokens[c, :n]])
        if drafted:
            text = np.concatenate([text, trace.proposals[c, n, :drafted]])
        tokens = np.zeros(3, np.int64)
        tail = text[::-1][:3]
        tokens[: len(tail)] = tail
        return tokens


__all__ = ["CALLS", "DEFAULT_COST", "DRAFTED", "TIME", "TOKENS", "DraftEnv", "Replay", "Simulator", "observation_space"]
