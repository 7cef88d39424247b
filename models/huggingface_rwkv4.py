"""RWKV-4 of Hugging Face's RwkvForCausalLM.

In evaluation mode theirs halves the residual stream every `rescale_every` layers, and the matrices that write to it with it, for
half precision's sake. Beside LayerNorm's eps that changes nothing, and ours doesn't. A model that was saved after it had
decoded has these matrices halved on the disk, which no setting tells: save it in training mode.

D model width   F hidden width   V vocabulary
"""

from typing import Any

from torch import Tensor, nn

from .backbones.rwkv4 import RWKV4, RWKV4Layer
from .huggingface import HuggingFaceModel, check_setting, setting, take_into

ATTENTION = {"time_mix_k": "time_mix_key", "time_mix_v": "time_mix_value", "time_mix_r": "time_mix_receptance"}
FEED_FORWARD = {"time_mix_k": "time_mix_key", "time_mix_r": "time_mix_receptance"}


def build(config: dict[str, Any], tensors: dict[str, Tensor]) -> HuggingFaceModel:
    """The model of an RwkvConfig and its state dict.

    :raises CheckpointError: tensors that don't fit the config, or a setting that our RWKV4 has no counterpart for
    :raises ValueError: impossible sizes
    """
    D, V = setting(config, "hidden_size"), setting(config, "vocab_size")
    check_setting(config, "attention_hidden_size", D)
    check_setting(config, "layer_norm_epsilon", 1e-5)
    backbone = RWKV4(D, setting(config, "num_hidden_layers"), setting(config, "intermediate_size", 4 * D))
    for name in [name for name in tensors if ".time_mix_" in name]:
        tensors[name] = tensors[name].flatten()  # theirs are (1, 1, D)
    for i, layer in enumerate(backbone.layers):
        assert isinstance(layer, RWKV4Layer)
        prefix = f"rwkv.blocks.{i}."
        if layer.ln0 is not None:
            take_into(layer.ln0, tensors, prefix + "pre_ln.")
        take_into(layer.ln1, tensors, prefix + "ln1.")
        take_into(layer.ln2, tensors, prefix + "ln2.")
        take_into(layer.att, tensors, prefix + "attention.", ATTENTION)
        take_into(layer.ffn, tensors, prefix + "feed_forward.", FEED_FORWARD)
    take_into(backbone.norm, tensors, "rwkv.ln_out.")
    embedding, head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
    take_into(embedding, tensors, "rwkv.embeddings.")
    if setting(config, "tie_word_embeddings", False):
        head.weight = embedding.weight
        tensors.pop("head.weight", None)
    else:
        take_into(head, tensors, "head.")
    return HuggingFaceModel(embedding, backbone, head)
