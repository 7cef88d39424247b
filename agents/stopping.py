"""What a learned stopping policy may depend on: tiles for an actor-critic, and a formula with few weights for a search."""

import math
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.cost import CostModel
from tdraft.value.tiles import TileCoding, tile_coding


def stopping_features(max_drafted: int, *, entropy: bool = False) -> TileCoding:
    """Where to stop is a threshold on the survival that moves with depth and with what the next token promises; past the
    remaining tokens no draft is worth anything.

    :param entropy: let it move with the target's entropy at the last verified position too
    """
    depths = np.arange(max_drafted) + 0.5
    tilings = [
        {ob.SURVIVAL: np.geomspace(0.01, 0.97, 32)},
        {ob.DRAFTED: depths},
        {ob.ACCEPTANCE: (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96)},
        {ob.SURVIVAL: np.geomspace(0.02, 0.9, 10), ob.DRAFTED: depths},
        {ob.DRAFTED: depths, ob.REMAINING: depths + 1},
    ]
    if entropy:
        tilings.append({ob.TARGET_ENTROPY: (0.3, 0.8, 1.5, 2.5), ob.DRAFTED: depths[:3]})
    return tile_coding(tilings)


class StoppingScores(NamedTuple):
    """What a draft promises against what it costs, with exponents to be learned: the rule `survival_cost` with theta in place of
    its constants. S is the survival, a the newest token's acceptance, k the tokens drafted, H the target's entropy at the last
    verified position while k < FRESH, and 0 after.

    draft if theta_0 + theta_1 log S + theta_2 log a + theta_3 k / K + theta_4 H > log(t_d + T(k + 2) - T(k + 1)), and it could
          be emitted
    drop  if theta_5 + theta_6 log S + theta_7 log a + theta_8 k / K + theta_9 H < log(T(k + 1) - T(k)), which is looked at first
    """

    price: np.ndarray  # (K + 1, 2) log of what one more token costs, and of what verifying the newest does

    @property
    def rule(self) -> Any:
        return stopping_score

    @property
    def n_weights(self) -> int:
        return 10

    @property
    def n_inputs(self) -> int:
        return ob.SIZE


FRESH = 3
STOPPING_MEAN = np.array([0.0, 1.0, 0.0, 0.0, 0.0] * 2)  # the survival counts, nothing else does
STOPPING_STD = np.array([0.5, 0.5, 0.5, 0.5, 0.3] * 2)


def stopping_scores(cost: CostModel) -> StoppingScores:
    """Scores on the prices of a cost model."""
    steps = np.maximum(np.diff(cost.verify[1:]), 1e-3)  # (K,) T(m + 1) - T(m), m = 1..K
    price = np.zeros((cost.max_drafted + 1, 2))
    price[:-1, 0], price[1:, 1] = np.log(cost.draft + steps), np.log(steps)
    return StoppingScores(price)


@lean
def _worth(theta, first, obs, depth):
    entropy = obs[ob.TARGET_ENTROPY] if obs[ob.DRAFTED] < FRESH else 0.0
    survival, acceptance = math.log(obs[ob.SURVIVAL]), math.log(obs[ob.ACCEPTANCE])
    worth = theta[first] + theta[first + 1] * survival + theta[first + 2] * acceptance
    return worth + theta[first + 3] * depth + theta[first + 4] * entropy


@lean
def stopping_score(scores, theta, obs, a):
    k, longest = int(obs[ob.DRAFTED]), len(scores.price) - 1
    if a == ob.DROP:
        return 1e3 if k > 0 and _worth(theta, 5, obs, k / longest) < scores.price[k, 1] else -1.0
    if a == ob.DRAFT:
        last = k >= longest or obs[ob.DRAFTED] + 1.0 >= obs[ob.REMAINING]
        return -1.0 if last else _worth(theta, 0, obs, k / longest) - scores.price[k, 0]
    return 0.0
