"""Llama of Hugging Face's LlamaForCausalLM, and Mistral, which is a Llama with a sliding window.

Two things are arranged anew, exactly: the gains of the norms go into the matrices behind them, and the rows of queries and keys
into our order. Theirs turns the pair (i, i + C / 2) of a head, ours (2i, 2i + 1); their query h * G + g looks at the keys h, and
ours stands at (g, h).

D model width   H heads   K heads of keys and values   G queries of each   C width of a head   F hidden width   V vocabulary
"""

from typing import Any

import torch
from torch import Tensor, nn

from .backbones.transformer import Block, Transformer
from .huggingface import HuggingFaceModel, check_setting, setting, take, take_into


def build(config: dict[str, Any], tensors: dict[str, Tensor]) -> HuggingFaceModel:
    """The model of a LlamaConfig or MistralConfig and its state dict.

    :raises CheckpointError: tensors that don't fit the config
    :raises ValueError: a setting that our Transformer has no counterpart for, or impossible sizes
    """
    D, H, V = setting(config, "hidden_size"), setting(config, "num_attention_heads"), setting(config, "vocab_size")
    check_setting(config, "hidden_act", "silu")
    check_setting(config, "attention_bias", False)
    check_setting(config, "mlp_bias", False)
    check_setting(config, "head_dim", D // H)
    backbone = Transformer(
        D,
        setting(config, "num_hidden_layers"),
        H,
        setting(config, "max_position_embeddings", 2048),
        setting(config, "intermediate_size"),
        n_kv_heads=setting(config, "num_key_value_heads", H),
        window=setting(config, "sliding_window", None),
        rope_base=rope_base(config),
        norm_eps=setting(config, "rms_norm_eps", 1e-6),
    )
    with torch.no_grad():
        for i, block in enumerate(backbone.blocks):
            assert isinstance(block, Block)
            _take_block(block, tensors, f"model.layers.{i}.", backbone.d_head)
        backbone.gain.copy_(take(tensors, "model.norm.weight", (D,)))
    embedding, head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
    take_into(embedding, tensors, "model.embed_tokens.")
    if setting(config, "tie_word_embeddings", False):
        head.weight = embedding.weight
        tensors.pop("lm_head.weight", None)
    else:
        take_into(head, tensors, "lm_head.")
    return HuggingFaceModel(embedding, backbone, head)


def rope_base(config: dict[str, Any]) -> float:
    """RoPE's theta, which stands in `rope_parameters` since transformers 5.

    :raises ValueError: scaled positions
    """
    rope = setting(config, "rope_parameters", setting(config, "rope_scaling", {}))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f'config.json asks for scaled positions of the type "{kind}"; our RoPE has the "default" alone')
    return float(rope.get("rope_theta", setting(config, "rope_theta", 10000.0)))


def _take_block(block: Block, tensors: dict[str, Tensor], prefix: str, C: int) -> None:
    K, G, D = block.n_kv_heads, block.groups, block.out.shape[0]
    F = block.down.shape[1]
    query = take(tensors, f"{prefix}self_attn.q_proj.weight", (D, D)).view(K, G, 2, C // 2, D)
    key = take(tensors, f"{prefix}self_attn.k_proj.weight", (K * C, D)).view(K, 1, 2, C // 2, D)
    turned = torch.cat((query, key), dim=1).permute(1, 0, 3, 2, 4).reshape(-1, D)  # (G + 1, K, C / 2, 2) rows
    value = take(tensors, f"{prefix}self_attn.v_proj.weight", (K * C, D))
    gain = take(tensors, f"{prefix}input_layernorm.weight", (D,))
    block.qkv.copy_(torch.cat((turned, value)) * gain)
    out = take(tensors, f"{prefix}self_attn.o_proj.weight", (D, D))
    block.out.copy_(out.view(D, K, G, C).transpose(1, 2).reshape(D, D))
    gate, up = (take(tensors, f"{prefix}mlp.{name}_proj.weight", (F, D)) for name in ("gate", "up"))
    gain = take(tensors, f"{prefix}post_attention_layernorm.weight", (D,))
    block.gate_up.copy_(torch.cat((gate, up)) * gain)
    block.down.copy_(take(tensors, f"{prefix}mlp.down_proj.weight", (D, F)))
