"""Policies as tables of probabilities, and the ratios of two of them."""

from typing import Any

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.features import StateFeatures
from tdraft.value.tables import first_greedy

from ..base import Decision, SpaceError
from ..settings import SettingsError


def probabilities(name: str, given: Any, shape: tuple[int, int]) -> np.ndarray:
    """A policy as a new array of (S, A) probabilities, from those, from (A,), from a `Decision` over states, or None for uniform.

    :raises SettingsError: another shape, or numbers that are not probabilities
    """
    if isinstance(given, Decision):
        decide, params, memory = given
        given = np.eye(shape[1])[[int(decide(params, memory, s)) for s in range(shape[0])]]
    policy = np.full(shape[1], 1.0 / shape[1]) if given is None else np.asarray(given, np.float64)
    if policy.shape not in (shape, shape[1:]) or not (policy >= 0).all() or np.abs(policy.sum(axis=-1) - 1).max() > 1e-9:
        raise SettingsError(f"{name} must hold (S, A) = {shape} probabilities, or (A,), that sum to 1 over actions, got {given}")
    return np.broadcast_to(policy, shape).copy()


def ratios(target: np.ndarray, acting: np.ndarray) -> np.ndarray:
    """(S, A) importance ratios target / acting, 0 for what neither does.

    :raises SettingsError: no coverage: an action that only the target takes
    """
    if np.any((acting == 0) & (target > 0)):
        s, a = np.argwhere((acting == 0) & (target > 0))[0]
        raise SettingsError(f"behaviour must do whatever policy does, but never takes action {a} in state {s}")
    return np.divide(target, acting, out=np.zeros(target.shape), where=acting > 0)


@lean
def constant_decide(params, memory, obs):
    """The likeliest action of params = (probabilities (A,),), whatever the observation."""
    return first_greedy(params[0])


def padded(features: StateFeatures, n_states: int) -> StateFeatures:
    """The same with empty rows for the states that have none."""
    missing = n_states - len(features.index)
    if missing < 0:
        raise SpaceError(f"the env has {n_states} states, features are of {len(features.index)}")
    rows = ((0, missing), (0, 0))
    return features._replace(index=np.pad(features.index, rows), value=np.pad(features.value, rows)) if missing else features
