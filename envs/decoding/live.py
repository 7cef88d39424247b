"""Draft-v0 on the decoder itself: the same observation, actions and clock, with a target that really runs."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.decoder import SpeculativeDecoder

from .draft import observation_space


class LiveDraftEnv(gym.Env):
    """One text an episode, decoded by `SpeculativeDecoder`'s sessions.

    :param decoder: target, drafter, calibration and sampling; its policy is not asked
    :param prompts: (C, P) token ids, taken at random, or in order with `shuffle=False`
    :param cost: the clock; with None, time is the measured seconds over `unit_seconds`
    :param unit_seconds: length of a plain step, needed where cost is None
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        prompts: np.ndarray,
        *,
        cost: CostModel | None = None,
        unit_seconds: float | None = None,
        n_tokens: int = 64,
        reference_rate: float = 1.0,
        shuffle: bool = True,
        keys: np.ndarray | None = None,
    ):
        if cost is None and not (unit_seconds or 0) > 0:
            raise ValueError("give cost=CostModel(...), or unit_seconds=... to run on the measured clock")
        if decoder.drafter is None:
            raise ValueError("the decoder has no drafter: there is nothing to decide")
        self.decoder, self.prompts, self.cost, self.n_tokens = decoder, prompts, cost, n_tokens
        self.unit_seconds = cost.unit_seconds if cost is not None else float(unit_seconds or 1.0)
        self.rho, self.shuffle = reference_rate, shuffle
        self.keys = np.arange(len(prompts)) if keys is None else keys
        self.max_drafted = decoder.options.get("max_drafted", 8)
        self.action_space = spaces.Discrete(ob.N_ACTIONS)
        self.observation_space = observation_space(n_tokens, self.max_drafted)
        self._next = -1
        self.session: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        count = len(self.prompts)
        self._next = int(self.np_random.integers(count)) if self.shuffle else (self._next + 1) % count
        self.session = self.decoder.session(self.prompts[self._next], self.n_tokens, key=int(self.keys[self._next]))
        return self.session.obs.copy(), {"context": self._next}

    def step(self, action):
        if self.session is None or self.session.done:
            raise gym.error.ResetNeeded("call reset() before step()")
        account = self.session.account
        seconds, drafted, calls, accepted = account.seconds, account.drafted, account.target_calls, account.accepted
        tokens = self.session.act(int(action))
        passed = account.seconds - seconds
        if self.cost is None:
            time = passed / self.unit_seconds
        elif account.target_calls > calls:
            time = self.cost.verify[account.rounds[-1][0] + 1]
        else:
            time = self.cost.draft * (account.drafted - drafted)
        info = {"duration": time, "seconds": passed, "tokens": len(tokens), "accepted": account.accepted - accepted}
        return self.session.obs.copy(), len(tokens) / self.rho - time, self.session.done, False, info
