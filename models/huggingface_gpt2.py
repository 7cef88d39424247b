"""GPT-2 of Hugging Face's GPT2LMHeadModel.

Its matrices are stored transposed (Conv1D), and the names differ; nothing else does.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .backbones.gpt2 import GPT2
from .huggingface import HuggingFaceModel, check_setting, setting, take, take_into

NAMES = {"norm_attention": "ln_1", "qkv": "attn.c_attn", "out": "attn.c_proj"}
NAMES |= {"norm_hidden": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}


def build(config: dict[str, Any], tensors: dict[str, Tensor]) -> HuggingFaceModel:
    """The model of a GPT2Config and its state dict.

    :raises CheckpointError: tensors that don't fit the config
    :raises ValueError: a setting that our GPT-2 has no counterpart for, or impossible sizes
    """
    check_setting(config, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    check_setting(config, "scale_attn_weights", True)
    check_setting(config, "scale_attn_by_inverse_layer_idx", False)
    check_setting(config, "add_cross_attention", False)
    D, V = setting(config, "n_embd", 768), setting(config, "vocab_size", 50257)
    backbone = GPT2(
        D,
        setting(config, "n_layer", 12),
        setting(config, "n_head", 12),
        setting(config, "n_positions", 1024),
        setting(config, "n_inner", 4 * D),
        setting(config, "layer_norm_epsilon", 1e-5),
    )
    prefix = "transformer." if "transformer.wte.weight" in tensors else ""  # the first releases were saved without a head
    with torch.no_grad():
        for i, block in enumerate(backbone.blocks):
            for name, module in block.named_children():
                _take_layer(module, tensors, f"{prefix}h.{i}.{NAMES[name]}.")
            for name in ("bias", "masked_bias"):  # the causal mask, which old checkpoints hold
                tensors.pop(f"{prefix}h.{i}.attn.{name}", None)
        backbone.gain.copy_(take(tensors, f"{prefix}ln_f.weight", (D,)))
        backbone.bias.copy_(take(tensors, f"{prefix}ln_f.bias", (D,)))
        backbone.positions.copy_(take(tensors, f"{prefix}wpe.weight", backbone.positions.shape))
    embedding, head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
    take_into(embedding, tensors, f"{prefix}wte.")
    if setting(config, "tie_word_embeddings", True):
        head.weight = embedding.weight
        tensors.pop("lm_head.weight", None)
    else:
        take_into(head, tensors, "lm_head.")
    return HuggingFaceModel(embedding, backbone, head)


def _take_layer(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    if isinstance(module, nn.Linear):
        module.weight.copy_(take(tensors, f"{prefix}weight", module.weight.mT.shape).mT)
        module.bias.copy_(take(tensors, f"{prefix}bias", module.bias.shape))
    else:
        take_into(module, tensors, prefix)
