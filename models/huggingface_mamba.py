"""Mamba as Hugging Face's `MambaForCausalLM` stores it, `MambaModel` too."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .backbones.mamba import Mamba
from .huggingface import HuggingFaceModel, check_setting, setting, take, take_into


def build(config: dict[str, Any], tensors: dict[str, Tensor]) -> HuggingFaceModel:
    """The model of a config.json and its tensors, which are taken out of the dict."""
    check_setting(config, "use_bias", False)
    check_setting(config, "use_conv_bias", True)
    check_setting(config, "hidden_act", "silu")
    d_model, vocabulary = setting(config, "hidden_size"), setting(config, "vocab_size")
    rank = setting(config, "time_step_rank", "auto")
    backbone = Mamba(
        d_model,
        n_layers=setting(config, "num_hidden_layers"),
        d_state=setting(config, "state_size", 16),
        expand=setting(config, "expand", 2),
        d_conv=setting(config, "conv_kernel", 4),
        dt_rank=math.ceil(d_model / 16) if rank == "auto" else rank,
        norm_eps=setting(config, "layer_norm_epsilon", 1e-5),
    )
    if "backbone.embedding.weight" in tensors:  # the authors' own name
        tensors["backbone.embeddings.weight"] = tensors.pop("backbone.embedding.weight")
    prefix = "backbone." if any(name.startswith("backbone.") for name in tensors) else ""  # a bare MambaModel has none
    for i, layer in enumerate(backbone.layers):
        names = {name: f"mixer.{name}" for name, _ in layer.named_parameters()} | {"norm.gain": "norm.weight"}
        take_into(layer, tensors, f"{prefix}layers.{i}.", names)
    take_into(backbone.norm, tensors, f"{prefix}norm_f.", {"gain": "weight"})
    embedding = nn.Embedding(vocabulary, d_model, _weight=take(tensors, f"{prefix}embeddings.weight", (vocabulary, d_model)))
    head = nn.utils.skip_init(nn.Linear, d_model, vocabulary, bias=False)
    if setting(config, "tie_word_embeddings", True):
        tied = tensors.pop("lm_head.weight", embedding.weight)
        if not torch.equal(tied, embedding.weight):
            raise ValueError("lm_head.weight differs from the embedding, but config.json has tie_word_embeddings")
        head.weight = embedding.weight
    else:
        head.weight = nn.Parameter(take(tensors, "lm_head.weight", (vocabulary, d_model)))
    return HuggingFaceModel(embedding, backbone, head)
