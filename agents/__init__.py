"""Learning rules. `AGENTS` maps the command line's names to classes; classes are imported at first use.

`MonteCarlo` is the control agent; that of prediction is `prediction.MonteCarlo`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .actor_critic import ActorCritic as ActorCritic
    from .average_reward import SemiMarkovQ as SemiMarkovQ
    from .base import Agent as Agent
    from .clearing_traces import LinearClearingSarsa as LinearClearingSarsa
    from .cross_entropy import CrossEntropy as CrossEntropy
    from .differential import DifferentialSarsa as DifferentialSarsa
    from .differential import RelativeQ as RelativeQ
    from .differential import RLearning as RLearning
    from .double import DoubleExpectedSarsa as DoubleExpectedSarsa
    from .double import DoubleQ as DoubleQ
    from .dyna import DynaQ as DynaQ
    from .dyna import DynaQPlus as DynaQPlus
    from .experiments import learning_curve as learning_curve
    from .linear import LinearExpectedSarsa as LinearExpectedSarsa
    from .linear import LinearQ as LinearQ
    from .linear import LinearSarsa as LinearSarsa
    from .linear_n_step import LinearNStepSarsa as LinearNStepSarsa
    from .monte_carlo import MonteCarlo as MonteCarlo
    from .monte_carlo import OffPolicyMonteCarlo as OffPolicyMonteCarlo
    from .n_step import NStepExpectedSarsa as NStepExpectedSarsa
    from .n_step import NStepSarsa as NStepSarsa
    from .n_step import OffPolicyNStepSarsa as OffPolicyNStepSarsa
    from .n_step import QSigma as QSigma
    from .n_step import TreeBackup as TreeBackup
    from .off_policy_q import OffPolicyQ as OffPolicyQ
    from .prediction import GTD2 as GTD2
    from .prediction import LSTD as LSTD
    from .prediction import TD as TD
    from .prediction import TDC as TDC
    from .prediction import EmphaticTD as EmphaticTD
    from .prediction import LambdaReturn as LambdaReturn
    from .prediction import NStepTD as NStepTD
    from .prediction import Prediction as Prediction
    from .prediction import RecursiveLSTD as RecursiveLSTD
    from .prediction import TDLambda as TDLambda
    from .prediction import TrueOnlineTD as TrueOnlineTD
    from .prioritised_sweeping import PrioritisedSweeping as PrioritisedSweeping
    from .sweeps import sweep as sweep
    from .tabular import ExpectedSarsa as ExpectedSarsa
    from .tabular import QLearning as QLearning
    from .tabular import Sarsa as Sarsa
    from .tabular_traces import SarsaLambda as SarsaLambda
    from .tabular_traces import WatkinsQ as WatkinsQ

AGENTS = {
    "q-learning": "QLearning",
    "off-policy-q-learning": "OffPolicyQ",
    "sarsa": "Sarsa",
    "expected-sarsa": "ExpectedSarsa",
    "average-reward": "SemiMarkovQ",
    "linear-sarsa": "LinearSarsa",
    "linear-expected-sarsa": "LinearExpectedSarsa",
    "linear-q": "LinearQ",
    "linear-n-step-sarsa": "LinearNStepSarsa",
    "linear-clearing-sarsa": "LinearClearingSarsa",
    "actor-critic": "ActorCritic",
    "cross-entropy": "CrossEntropy",
    "n-step-sarsa": "NStepSarsa",
    "n-step-expected-sarsa": "NStepExpectedSarsa",
    "off-policy-n-step-sarsa": "OffPolicyNStepSarsa",
    "tree-backup": "TreeBackup",
    "q-sigma": "QSigma",
    "double-q": "DoubleQ",
    "double-expected-sarsa": "DoubleExpectedSarsa",
    "sarsa-lambda": "SarsaLambda",
    "q-lambda": "WatkinsQ",
    "monte-carlo": "MonteCarlo",
    "off-policy-monte-carlo": "OffPolicyMonteCarlo",
    "dyna-q": "DynaQ",
    "dyna-q-plus": "DynaQPlus",
    "prioritised-sweeping": "PrioritisedSweeping",
    "differential-sarsa": "DifferentialSarsa",
    "r-learning": "RLearning",
    "rvi-q": "RelativeQ",
}
_MODULES = {
    "Agent": "base",
    "QLearning": "tabular",
    "OffPolicyQ": "off_policy_q",
    "Sarsa": "tabular",
    "ExpectedSarsa": "tabular",
    "SemiMarkovQ": "average_reward",
    "LinearSarsa": "linear",
    "LinearExpectedSarsa": "linear",
    "LinearQ": "linear",
    "LinearNStepSarsa": "linear_n_step",
    "LinearClearingSarsa": "clearing_traces",
    "ActorCritic": "actor_critic",
    "CrossEntropy": "cross_entropy",
    "NStepSarsa": "n_step",
    "NStepExpectedSarsa": "n_step",
    "OffPolicyNStepSarsa": "n_step",
    "TreeBackup": "n_step",
    "QSigma": "n_step",
    "DoubleQ": "double",
    "DoubleExpectedSarsa": "double",
    "SarsaLambda": "tabular_traces",
    "WatkinsQ": "tabular_traces",
    "MonteCarlo": "monte_carlo",
    "OffPolicyMonteCarlo": "monte_carlo",
    "DynaQ": "dyna",
    "DynaQPlus": "dyna",
    "PrioritisedSweeping": "prioritised_sweeping",
    "DifferentialSarsa": "differential",
    "RLearning": "differential",
    "RelativeQ": "differential",
    "GTD2": "prediction",
    "LSTD": "prediction",
    "TD": "prediction",
    "TDC": "prediction",
    "EmphaticTD": "prediction",
    "LambdaReturn": "prediction",
    "NStepTD": "prediction",
    "Prediction": "prediction",
    "RecursiveLSTD": "prediction",
    "TDLambda": "prediction",
    "TrueOnlineTD": "prediction",
    "learning_curve": "experiments",
    "sweep": "sweeps",
}


def __getattr__(name: str):
    if name == "prediction":
        return import_module(".prediction", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
