"""Two paths, one result: from a seed, all ways to train give the same arrays bit for bit, for every agent and env that fit.

"compiled" is the loop that `learn` makes of an env and an agent; "interpreted", the agent's two functions called one at a time
through `gym.Env`; "plain", the undecorated Python functions, in a process where Numba does not compile.

Training runs in two processes beside this one. One compiles with NUMBA_OPT=1: the bits cannot depend on how hard LLVM optimises,
as no option lets it change floating-point arithmetic, and 400 loops take a fifth less time. (TDRAFT_PARITY_OPT=3 compiles as
users do.) Tables share one loop an agent and are always tested, as is each agent on one other env; the rest are marked slow.
"""

import gc
import hashlib
import json
import os
import subprocess
import sys
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.seeding import np_random

import tdraft.envs
from tdraft import agents
from tdraft.agents import AGENTS, Agent, prediction
from tdraft.agents.base import SpaceError
from tdraft.envs.compiled import compile_env, leaves, table_step
from tdraft.envs.decoding.accept_sources import Simulator
from tdraft.value.tiles import uniform_tiles

STEPS = 300
KINDS = {name: getattr(agents, kind) for name, kind in AGENTS.items()}
KINDS |= {kind.name: kind for kind in (getattr(prediction, n) for n in prediction.__all__) if kind is not prediction.Prediction}
NUMPY = ("FrozenLake-v1", "Taxi-v4")  # draw from a NumPy generator, which all three ways are handed
ENVS = (*(f"tdraft/{name}-v0" for name in tdraft.envs._ENVS), "table of Accept-v0", "CliffWalking-v1", *NUMPY)
# Values and a rate that are not zero change from the first step on, whatever the rewards are.
OPTIONS = {"alpha": 0.1, "epsilon": 0.3, "gamma": 0.95, "n": 3, "n_steps": 7, "beta": 0.05, "lambda_": 0.8, "capacity": 40}
OPTIONS |= {"q_init": 0.5, "v_init": 0.5, "rho_init": 0.1}
VALUES = {"q", "table.q", "w", "memory.a"}
LEARN_FROM_EPISODES = ("monte-carlo", "off-policy-monte-carlo", "monte-carlo-prediction", "lambda-return-prediction")

Digests = dict[str, str]


@cache
def env_of(name: str) -> gym.Env:
    """The env, with starts drawn as compiled training draws them."""
    if "Accept" in name:
        source, observe = Simulator(texts=4, length=16, vocabulary=6), "table" if name.startswith("table") else "vector"
        return gym.make("tdraft/Accept-v0", source=source, n_tokens=16, observe=observe)
    if name in ("tdraft/MountainCar-v0", "tdraft/CartPole-v0", "tdraft/Acrobot-v0"):
        return gym.make(name, numpy_reset=False)
    return gym.make(name)


def fits(kind: type[Agent], env: str) -> bool:
    try:
        kind.check_spaces(env_of(env).observation_space, env_of(env).action_space)
    except SpaceError:
        return False
    return True


def pairs() -> list:
    """All pairs of an agent and an env that fit; slow are those with an env that is no table but the agent's turn of them."""
    tables = [env for env in ENVS if compile_env(env_of(env))[2] is table_step and env not in NUMPY]
    found = []
    for turn, (name, kind) in enumerate(KINDS.items()):
        fitting = [env for env in ENVS if fits(kind, env)]
        others = [env for env in fitting if env not in tables]
        always = {*tables, others[turn % len(others)]}
        found += [pytest.param(name, env, marks=() if env in always else pytest.mark.slow) for env in fitting]
    return found


def make(name: str, env: str) -> Agent:
    kind, space = KINDS[name], env_of(env).observation_space
    options = {k: v for k, v in OPTIONS.items() if k in kind.Settings.__dataclass_fields__}
    if name == "linear-n-step-sarsa":
        del options["lambda_"]
    if isinstance(space, gym.spaces.Box):
        low, high = (np.clip(bound.astype(float), -5, 5)[:2] for bound in (space.low, space.high))
        options["features"] = uniform_tiles(low, high, bins=3, tilings=4)
    elif name.endswith("lstd-prediction"):
        options["features"] = np.eye(5)[np.arange(space.n) % 5]  # its matrices are (F, F)
    return kind(env_of(env), seed=3, **options)


def digests(agent: Agent) -> Digests:
    """A short hash of each array that training changes."""
    arrays = [*leaves(agent.learner), *leaves(agent.standing), ("rng", agent.rng)]
    return {name: hashlib.sha256(array.tobytes()).hexdigest()[:12] for name, array in arrays}


def trained(path: str, name: str, env: str) -> tuple[Digests, list[str]]:
    """Digests after training, and the names of the learner's arrays that it changed."""
    agent = make(name, env)
    assert agent.compiled is not None, agent.path
    before = digests(agent)
    if path == "interpreted":
        agent.compiled = None
    elif env in NUMPY:
        agent.env_rng = np_random(agent.env_seed)[0]
    after = digests(agent.learn(STEPS))
    return after, [array for array, _ in leaves(agent.learner) if after[array] != before[array]]


class Trainer:
    """This file as a script in a process of its own: it reads a path and a pair a line and answers with what `trained` gives."""

    def __init__(self, **environment: str):
        command, pipe = [sys.executable, __file__], subprocess.PIPE
        self.process = subprocess.Popen(command, env=os.environ | environment, stdin=pipe, stdout=pipe, text=True)

    def ask(self, path: str, name: str, env: str) -> None:
        assert self.process.stdin is not None
        print(json.dumps([path, name, env]), file=self.process.stdin, flush=True)

    def answer(self) -> tuple[Digests, list[str]]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline() or "null")

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def compiling():
    trainer = Trainer(NUMBA_OPT=os.environ.get("TDRAFT_PARITY_OPT", "1"))
    yield trainer
    trainer.close()


@pytest.fixture(scope="module")
def plain():
    trainer = Trainer(NUMBA_DISABLE_JIT="1")
    yield trainer
    trainer.close()


@pytest.mark.parametrize(("name", "env"), pairs())
def test_all_ways_to_train_are_bit_identical(name, env, compiling, plain):
    compiling.ask("compiled", name, env)
    compiling.ask("interpreted", name, env)
    plain.ask("plain", name, env)
    compiled, interpreted, undecorated = compiling.answer(), compiling.answer(), plain.answer()
    assert compiled == interpreted
    assert compiled == undecorated
    _, changed = compiled
    assert {array.split(".")[-1] for array in changed} - {"last", "clock"}
    if name != "cross-entropy" and name not in LEARN_FROM_EPISODES:
        assert VALUES & set(changed)


if __name__ == "__main__":
    gc.set_threshold(100_000, 20, 20)  # a tenth of the time that compiling takes
    for line in sys.stdin:
        print(json.dumps(trained(*json.loads(line))), flush=True)
