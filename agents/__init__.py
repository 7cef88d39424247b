"""Learning rules. `AGENTS` maps the command line's names to classes; classes are imported at first use."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .actor_critic import ActorCritic as ActorCritic
    from .average_reward import SemiMarkovQ as SemiMarkovQ
    from .base import Agent as Agent
    from .linear import LinearExpectedSarsa as LinearExpectedSarsa
    from .linear import LinearQ as LinearQ
    from .linear import LinearSarsa as LinearSarsa
    from .tabular import ExpectedSarsa as ExpectedSarsa
    from .tabular import QLearning as QLearning
    from .tabular import Sarsa as Sarsa

AGENTS = {
    "q-learning": "QLearning",
    "sarsa": "Sarsa",
    "expected-sarsa": "ExpectedSarsa",
    "average-reward": "SemiMarkovQ",
    "linear-sarsa": "LinearSarsa",
    "linear-expected-sarsa": "LinearExpectedSarsa",
    "linear-q": "LinearQ",
    "actor-critic": "ActorCritic",
}
_MODULES = {
    "Agent": "base",
    "QLearning": "tabular",
    "Sarsa": "tabular",
    "ExpectedSarsa": "tabular",
    "SemiMarkovQ": "average_reward",
    "LinearSarsa": "linear",
    "LinearExpectedSarsa": "linear",
    "LinearQ": "linear",
    "ActorCritic": "actor_critic",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
