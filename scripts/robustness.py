"""What a wrong clock, another temperature or another text costs a policy that was made without knowing."""

import string
from dataclasses import dataclass

import numpy as np

from tdraft.agents import decoding_evaluation as ev
from tdraft.agents.decoding_baselines import tune_all
from tdraft.agents.decoding_learning import actor_critic_policy
from tdraft.envs.decoding.draft import Replay
from tdraft.models.decoding.calibration import fit_calibration
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.observation import Calibration
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.models.decoding.trace import Trace

RULES = ("static", "survival x cost")


@dataclass(frozen=True)
class Material:
    """What a policy is made from: traces to train and to tune on, the calibration fitted to the first, and a clock."""

    train: Trace
    validation: Trace
    calibration: Calibration
    cost: CostModel

    def on(self, select) -> "Material":
        """The contexts for which `select(trace)` (C,) holds, with a calibration of their own."""
        train, validation = (trace.select(select(trace)) for trace in (self.train, self.validation))
        return Material(train, validation, fit_calibration(train), self.cost)


def make(material: Material, timesteps: int) -> dict[str, DraftPolicy]:
    """The best static length, the best tuned rule and one actor-critic."""
    validation = Replay(material.validation, material.calibration, material.cost, shuffle=False)
    rules = {"static" if p.name.startswith("static") else p.name: p for p in tune_all(validation, RULES)}
    rate = ev.speedup(ev.play(validation, rules["static"], texts=len(material.validation.tokens)))
    train = Replay(material.train, material.calibration, material.cost)
    return rules | {"actor-critic": actor_critic_policy(train, rate=rate, seed=0, timesteps=timesteps)}


def code_like(trace: Trace) -> np.ndarray:
    """(C,) contexts whose prompts have fewer letters and spaces than most."""
    prose = np.frombuffer((" " + string.ascii_letters).encode(), np.uint8)
    letters = np.isin(trace.prompts, prose).mean(axis=1)
    return letters < np.median(letters)


def robustness(here: Material, elsewhere: Material, test: Trace, timesteps: int) -> list[dict]:
    """Rows name -> loss_percent {change: percent of the speed-up of the same kind of policy made without the change}.

    :param here: what belongs to `test`
    :param elsewhere: the same at another temperature
    """
    cases = {
        "costs taken 20% too low": (here, Material(here.train, here.validation, here.calibration, here.cost.scaled(0.8)), test),
        "costs taken 20% too high": (here, Material(here.train, here.validation, here.calibration, here.cost.scaled(1.2)), test),
        "made at the other temperature": (here, elsewhere, test),
        "made on prose, played on code": (
            here.on(code_like),
            here.on(lambda trace: ~code_like(trace)),
            test.select(code_like(test)),
        ),
    }
    rows: dict[str, dict] = {}
    for change, (right, wrong, contexts) in cases.items():
        speeds = []
        for material in (right, wrong):
            replay = Replay(contexts, material.calibration, here.cost, shuffle=False)
            speeds.append(
                {k: ev.speedup(ev.play(replay, p, texts=len(contexts.tokens))) for k, p in make(material, timesteps).items()}
            )
        for name in speeds[0]:
            row = rows.setdefault(name, {"name": name, "loss_percent": {}})
            row["loss_percent"][change] = 100 * (speeds[1][name] / speeds[0][name] - 1)
    return list(rows.values())
