"""Hyper-parameters of Stable-Baselines3's algorithms: the handful that people change. Doesn't import torch."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from .settings import SettingsError, check


def check_counts(settings: Any, *names: str, least: int = 1) -> None:
    """Raise SettingsError unless these fields are integers >= least."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise SettingsError(f"{name} must be an integer >= {least}, got {value!r}")


@dataclass(frozen=True)
class Sb3Settings:
    """What both algorithms have. Defaults are Stable-Baselines3's own where not said otherwise."""

    learning_rate: float = 3e-4
    """Step size of Adam."""
    gamma: float | None = None
    """Discount factor, in [0, 1]; by default 1 in the decoding envs, which take no other, and 0.99 elsewhere."""
    batch_size: int = 64
    """Transitions in a gradient step."""
    net: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    scale: bool | None = None
    """Map observations to [-1, 1] by their bounds before the network; by default in the decoding envs only."""
    n_envs: int = 1
    """Copies of the env that are stepped side by side; the env steps of all of them count."""
    device: str = "cpu"
    """Where the network runs; for networks this small a GPU is slower."""

    OWN: ClassVar = ("net", "scale", "n_envs")  # not Stable-Baselines3's names

    def __post_init__(self):
        check("learning_rate", self.learning_rate, 0, 1, open_low=True)
        if self.gamma is not None:
            check("gamma", self.gamma, 0, 1)
        check_counts(self, "batch_size", "n_envs")
        if not all(isinstance(width, int) and width > 0 for width in self.net):
            raise SettingsError(f"net must hold widths >= 1, got {self.net}")

    def options(self) -> dict[str, Any]:
        """Arguments of the algorithm's constructor."""
        return {name: value for name, value in asdict(self).items() if name not in self.OWN}


@dataclass(frozen=True)
class PPOSettings(Sb3Settings):
    """PPO of Stable-Baselines3."""

    n_steps: int = 2048
    """Steps of each env between two updates; training takes whole rollouts of n_steps * n_envs."""
    n_epochs: int = 10
    """Passes over each rollout."""
    gae_lambda: float = 0.95
    """lambda of the advantages, in [0, 1]."""
    clip_range: float = 0.2
    """How far the policy's probability ratios may move in one update."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "n_steps", "n_epochs")
        check_counts(self, "batch_size", least=2)
        check("gae_lambda", self.gae_lambda, 0, 1)
        check("clip_range", self.clip_range, 0, 1, open_low=True)
        check("ent_coef", self.ent_coef, 0, 1e6)
        check("vf_coef", self.vf_coef, 0, 1e6)
        if self.n_steps * self.n_envs % self.batch_size:
            raise SettingsError(
                f"batch_size must divide n_steps * n_envs = {self.n_steps * self.n_envs}, got {self.batch_size}: choose another"
            )


@dataclass(frozen=True)
class DQNSettings(Sb3Settings):
    """DQN of Stable-Baselines3."""

    learning_rate: float = 1e-4
    """Step size of Adam."""
    batch_size: int = 32
    """Transitions in a gradient step."""
    buffer_size: int = 100_000
    """Transitions kept for replay (Stable-Baselines3's own default is a million; each checkpoint writes them all)."""
    learning_starts: int = 100
    """Random steps before the first gradient step."""
    train_freq: int = 4
    """Steps of each env between two gradient steps."""
    target_update_interval: int = 10_000
    """Steps between two copies of the network into its target."""
    exploration_fraction: float = 0.1
    """Share of the training over which epsilon falls from 1."""
    exploration_final_eps: float = 0.05
    """epsilon from then on."""

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "buffer_size", "train_freq", "target_update_interval")
        check_counts(self, "learning_starts", least=0)
        check("exploration_fraction", self.exploration_fraction, 0, 1, open_low=True)
        check("exploration_final_eps", self.exploration_final_eps, 0, 1)
