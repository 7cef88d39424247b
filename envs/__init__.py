"""Gymnasium environments. Importing this package registers them as `tdraft/...`."""

from typing import Any

from gymnasium.envs.registration import register, registry

# name: (module and class, keywords, time limit in steps or None)
_ENVS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "Draft": ("decoding.draft:DraftEnv", {}, None),
    "TabularDraft": ("decoding.tabular:tabular_draft", {}, None),
    "Accept": ("decoding.accept:AcceptEnv", {}, None),
    "RandomWalk5": ("textbook.walks:RandomWalk", {"n_states": 5, "left_reward": 0.0}, None),
    "RandomWalk19": ("textbook.walks:RandomWalk", {"n_states": 19}, None),
    "RandomWalk1000": ("textbook.walks:RandomWalk", {"n_states": 1000, "jump": 100}, None),
    "BoyanChain": ("textbook.walks:BoyanChain", {}, None),
    "Baird": ("textbook.walks:Baird", {}, None),
    "WindyGridworld": ("textbook.grids:WindyGridworld", {}, None),
    "KingsWindyGridworld": ("textbook.grids:WindyGridworld", {"moves": 8}, None),
    "StochasticWindyGridworld": ("textbook.grids:WindyGridworld", {"moves": 8, "stochastic": True}, None),
    "ZhaoGrid": ("textbook.grids:ZhaoGrid", {}, None),
    "DynaMaze": ("textbook.grids:DynaMaze", {}, None),
    "BlockingMaze": ("textbook.changing:BlockingMaze", {}, None),
    "ShortcutMaze": ("textbook.changing:ShortcutMaze", {}, None),
    "MaximizationBias": ("textbook.decisions:MaximizationBias", {}, None),
    "Gambler": ("textbook.decisions:Gambler", {}, None),
    "AccessControl": ("textbook.decisions:AccessControl", {}, None),
    "JacksCarRental": ("textbook.rental:JacksCarRental", {}, None),
    "Racetrack": ("textbook.racetrack:Racetrack", {}, None),
    "Blackjack": ("textbook.blackjack:Blackjack", {}, None),
    "MountainCar": ("control.classic:MountainCar", {}, 200),
    "CartPole": ("control.classic:CartPole", {}, 500),
    "Acrobot": ("control.acrobot:Acrobot", {}, 500),
    "PuddleWorld": ("control.puddle:PuddleWorld", {}, None),
}
_VECTOR = {"Draft": "tdraft.envs.decoding.vector:DraftVectorEnv"}

for _name, (_entry, _keywords, _limit) in _ENVS.items():
    if f"tdraft/{_name}-v0" not in registry:
        register(
            f"tdraft/{_name}-v0",
            entry_point=f"tdraft.envs.{_entry}",
            vector_entry_point=_VECTOR.get(_name),
            kwargs=_keywords,
            max_episode_steps=_limit,
        )
