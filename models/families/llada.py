"""LLaDA and MMaDA's text: Llama weights under LLaDA's names, full attention. https://github.com/ML-GSAI/LLaDA

config.json has OLMo's flags. Those that change a Llama network exactly are folded into its weights on load and taken
out again on save: scale_logits (into the final norm), input_emb_norm (into the embedding; where the head is tied to
it, out of the final norm), gemma_rms (norm weights counted from 1), fused projections of sequential blocks, block
groups, biases. Those that need other modules are refused. `llada` is also the model_type of a preparation layout of
LLaDA-V with Llama's own names and flags, which is read as it is.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from models.families.base import CONFIG_KEYS, STDIO, ChatFormat, Decoding, Family, Piece, pick

logger = logging.getLogger(__name__)

_LLAMA_KEYS = (*CONFIG_KEYS, "attention_bias", "mlp_bias")
_OUTER = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}
_INNER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
_ACTIVATIONS = {"llama": ("silu", "gelu", "relu"), "sequential": ("swiglu",)}


_ABSENT = {
    "activation_type": "swiglu",
    "block_type": "sequential",
    "layer_norm_type": "default",
    "layer_norm_with_affine": True,
    "mlp_ratio": 4,
    "block_group_size": 1,
    "max_sequence_length": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "init_std": 0.02,
    "embedding_size": None,
    "weight_tying": True,
}


def _flags(raw_config: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json's flags with the original's defaults; those that default to off read as None. None for a checkpoint
    with Llama's names."""
    if "d_model" not in raw_config:
        return None
    return defaultdict(lambda: None, {**_ABSENT, **raw_config})


def _refuse(flags: Mapping[str, Any]) -> None:
    """ValueError naming every flag that a Llama network cannot express."""
    bad = [name for name in ("alibi", "attention_layer_norm", "clip_qkv") if flags[name]]
    bad += [name for name in ("rope", "layer_norm_with_affine") if not flags[name]]
    norm_bias = flags["bias_for_layer_norm"]
    if flags["include_bias"] if norm_bias is None else norm_bias:
        bad.append("bias_for_layer_norm")
    if flags["layer_norm_type"] not in ("rms", "gemma_rms"):
        bad.append("layer_norm_type")
    if flags["activation_type"] not in _ACTIVATIONS.get(flags["block_type"], ()):
        bad += ["block_type", "activation_type"]
    if bad:
        raise ValueError(
            f"config.json has {', '.join(f'{name}: {flags[name]!r}' for name in bad)}: LLaDA runs as a Llama network "
            "here, which cannot express this. It takes rope, norms of type rms or gemma_rms without bias, llama blocks "
            "with silu, gelu or relu, and sequential blocks with swiglu."
        )


def _key_value_heads(flags: Mapping[str, Any]) -> int:
    given, shared = flags["n_kv_heads"], flags["multi_query_attention"]
    implied = 1 if shared else int(flags["n_heads"])
    if given is not None and shared is not None and given != implied:
        raise ValueError(f"config.json has n_kv_heads: {given} and multi_query_attention: {shared}, which disagree.")
    return implied if given is None else int(given)


def _inner_size(flags: Mapping[str, Any]) -> int:
    """Width between the MLP's projections; swiglu halves the one in config.json."""
    given = flags["mlp_hidden_size"]
    size = int(flags["mlp_ratio"] * flags["d_model"] if given is None else given)
    return size // 2 if flags["activation_type"] == "swiglu" else size


def _config_arguments(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    flags = _flags(raw_config)
    if flags is None:
        return pick(raw_config, _LLAMA_KEYS)
    _refuse(flags)
    for name in ("embedding_dropout", "residual_dropout", "attention_dropout"):
        if flags[name]:
            logger.warning("config.json has %s: %s; no dropout is applied here", name, flags[name])
    return dict(
        vocab_size=flags["embedding_size"] or flags["vocab_size"],
        hidden_size=flags["d_model"],
        intermediate_size=_inner_size(flags),
        num_hidden_layers=flags["n_layers"],
        num_attention_heads=flags["n_heads"],
        num_key_value_heads=_key_value_heads(flags),
        hidden_act={"swiglu": "silu"}.get(flags["activation_type"], flags["activation_type"]),
        max_position_embeddings=flags["max_sequence_length"],
        initializer_range=flags["init_std"],
        rms_norm_eps=flags["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": flags["rope_theta"]},
        tie_word_embeddings=bool(flags["weight_tying"]),
        attention_bias=bool(flags["include_bias"] or flags["include_qkv_bias"]),
        mlp_bias=bool(flags["include_bias"]),
    )


def _adapt(network: Any, raw_config: Mapping[str, Any]) -> None:
    """Biases other than Llama's: include_qkv_bias gives o_proj none, include_bias gives an untied head one."""
    import torch

    flags = _flags(raw_config)
    if flags is None:
        return
    if flags["include_bias"] and not flags["weight_tying"]:
        network.lm_head.bias = torch.nn.Parameter(torch.zeros_like(network.lm_head.weight[:, 0]))
    if flags["include_qkv_bias"] and not flags["include_bias"]:
        for layer in network.model.layers:
            layer.self_attn.o_proj.bias = None


def _pieces(raw_config: Mapping[str, Any], weight: str, shape: Sequence[int]) -> list[Piece]:
    flags = _flags(raw_config)
    if flags is None:
        return [Piece(weight)]
    module, _, kind = weight.rpartition(".")
    if module in _OUTER:
        scale, shift = _outer_fold(flags, module, kind)
        return [Piece(f"model.transformer.{_OUTER[module]}.{kind}", scale=scale, shift=shift)]
    _, _, index, name = module.split(".", 3)
    layer, group = int(index), int(flags["block_group_size"])
    block = f"blocks.{layer}" if group == 1 else f"block_groups.{layer // group}.{layer % group}"
    stored, rows = _INNER[name], None
    if flags["block_type"] == "sequential" and name in (fused := _fused(flags)):
        stored, rows = fused[name]
    is_from_one = stored.endswith("_norm") and flags["layer_norm_type"] == "gemma_rms"
    return [Piece(f"model.transformer.{block}.{stored}.{kind}", rows, shift=1.0 if is_from_one else 0.0)]


def _outer_fold(flags: Mapping[str, Any], module: str, kind: str) -> tuple[float, float]:
    """(scale, shift) of the embedding, the final norm and the head.

    scale_logits divides the logits by sqrt(d_model), input_emb_norm multiplies the embedding by it; a head tied to
    the embedding must not see that factor, so the final norm takes it out.
    """
    root = float(flags["d_model"]) ** 0.5
    if module == "model.embed_tokens":
        return (root if flags["input_emb_norm"] else 1.0), 0.0
    if module == "lm_head":
        return (1 / root if kind == "bias" and flags["scale_logits"] else 1.0), 0.0
    scale = 1.0
    if flags["scale_logits"]:
        scale /= root
    if flags["input_emb_norm"] and flags["weight_tying"]:
        scale /= root
    return scale, scale if flags["layer_norm_type"] == "gemma_rms" else 0.0


def _fused(flags: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, int]]]:
    """Sequential blocks: projection -> (fused tensor, its rows). att_proj is [q, k, v], ff_proj is [up, gate]."""
    q = int(flags["d_model"])
    k = q + q // int(flags["n_heads"]) * _key_value_heads(flags)
    inner = _inner_size(flags)
    return {
        "self_attn.q_proj": ("att_proj", (0, q)),
        "self_attn.k_proj": ("att_proj", (q, k)),
        "self_attn.v_proj": ("att_proj", (k, 2 * k - q)),
        "mlp.up_proj": ("ff_proj", (0, inner)),
        "mlp.gate_proj": ("ff_proj", (inner, 2 * inner)),
    }


_CHAT = ChatFormat(
    turn="<|startoftext|><|start_header_id|>%s<|end_header_id|>%s",
    end_of_turn="<|eot_id|>",
    assistant="<|startoftext|><|start_header_id|>assistant<|end_header_id|>\n",
    stdio=STDIO.replace("\nYou", "\n You"),
)
LLADA = Family(
    name="llada",
    model_types=("llada",),
    attention="full",
    model_class="LlamaForCausalLM",
    config_arguments=_config_arguments,
    adapt=_adapt,
    pieces=_pieces,
    mask_token="<|mdm_mask|>",
    mask_id=126336,
    tokenizer_class="PreTrainedTokenizerFast",
    chat=_CHAT,
    text_vocab_size=lambda raw_config: int(raw_config["vocab_size"]),  # the embedding may be larger
    decoding=Decoding(dynamic_at_least_one=True, threshold_passes=True, block_size=32),
)


def _mmada_text_vocab_size(raw_config: Mapping[str, Any]) -> int:
    """Image codes follow the text's ids and the special ids that were added to them, up to the end."""
    text = raw_config.get("llm_vocab_size")
    if text is None:
        return int(raw_config["vocab_size"]) - int(raw_config.get("codebook_size") or 0)
    return int(text) + int(raw_config.get("num_new_special_tokens") or 0)


def _mmada_vision(model: Any, image_tokenizer: str | None) -> Any:
    from models.vision.codes import code_vision

    return code_vision(model, image_tokenizer)


def _mmada_picture_fits() -> tuple[str, ...]:
    from models.vision.codes import Codes

    return Codes.fits


MMADA = replace(
    LLADA,
    name="mmada",
    model_types=("mmada",),
    text_vocab_size=_mmada_text_vocab_size,
    chat=replace(_CHAT, picture_turn="<|startoftext|><|start_header_id|>%s<|end_header_id|>\n%s"),
    vision=_mmada_vision,
    picture_fits=_mmada_picture_fits,
)
