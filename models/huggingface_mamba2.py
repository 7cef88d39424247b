"""Mamba-2 of Hugging Face's Mamba2ForCausalLM.

D model width   E inner width   H heads   V vocabulary
"""

from typing import Any

from torch import Tensor, nn

from .backbones.mamba2 import Mamba2
from .huggingface import HuggingFaceModel, check_setting, setting, take_into

NAMES = {  # of our parameters in the layer of theirs
    "norm.gain": "norm.weight",
    "gate_norm.gain": "mixer.norm.weight",
    "in_proj.weight": "mixer.in_proj.weight",
    "in_proj.bias": "mixer.in_proj.bias",
    "conv1d.weight": "mixer.conv1d.weight",
    "conv1d.bias": "mixer.conv1d.bias",
    "dt_bias": "mixer.dt_bias",
    "A_log": "mixer.A_log",
    "D": "mixer.D",
    "out_proj.weight": "mixer.out_proj.weight",
    "out_proj.bias": "mixer.out_proj.bias",
}


def build(config: dict[str, Any], tensors: dict[str, Tensor]) -> HuggingFaceModel:
    """The model of a Mamba2Config and its state dict.

    :raises CheckpointError: tensors that don't fit the config
    :raises ValueError: a setting that our Mamba2 has no counterpart for, or impossible sizes
    """
    D, V = setting(config, "hidden_size"), setting(config, "vocab_size")
    expand, headdim = setting(config, "expand", 2), setting(config, "head_dim", 64)
    check_setting(config, "hidden_act", "silu")
    check_setting(config, "num_heads", int(expand * D) // headdim)
    check_setting(config, "time_step_limit", [0.0, float("inf")], [0.0, {"__float__": "Infinity"}])  # transformers 4 and 5
    backbone = Mamba2(
        D,
        setting(config, "num_hidden_layers"),
        d_state=setting(config, "state_size", 128),
        d_conv=setting(config, "conv_kernel", 4),
        expand=expand,
        headdim=headdim,
        ngroups=setting(config, "n_groups", 8),
        bias=setting(config, "use_bias", False),
        conv_bias=setting(config, "use_conv_bias", True),
        eps=setting(config, "layer_norm_epsilon", 1e-5),
    )
    for i, layer in enumerate(backbone.layers):
        take_into(layer, tensors, f"backbone.layers.{i}.", NAMES)
    take_into(backbone.norm, tensors, "backbone.norm_f.", {"gain": "weight"})
    embedding, head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
    take_into(embedding, tensors, "backbone.embeddings.")
    if setting(config, "tie_word_embeddings", False):
        head.weight = embedding.weight
        tensors.pop("lm_head.weight", None)
    else:
        take_into(head, tensors, "lm_head.")
    return HuggingFaceModel(embedding, backbone, head)
