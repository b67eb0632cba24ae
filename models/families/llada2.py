"""LLaDA2.0, 2.1 and 2.2: GLM-4-MoE weights under block-causal attention. The router scores experts by sigmoids and
chooses by a bias that is no weight but a buffer: fp32, saved, never trained. 2.0 and 2.1 choose inside groups; 2.2,
known by `expert_capacity`, for a whole block together, and its edits delete and insert tokens (both not checked against
the original).
https://github.com/inclusionAI/LLaDA2.X
"""

from collections.abc import Mapping, Sequence
from typing import Any

from models.families.base import (
    CONFIG_KEYS,
    WINDOW_KEY,
    ChatFormat,
    Family,
    Piece,
    expert_pieces,
    pick,
    refuse_sliding_window,
)

_CONFIG_KEYS = (
    *(key for key in CONFIG_KEYS if not key.startswith("rope_")),
    *("attention_dropout", "first_k_dense_replace", "head_dim", "moe_intermediate_size", "n_group"),
    *("num_experts_per_tok", "routed_scaling_factor", "topk_group"),
)
_INNER = {
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
}


def _refuse(raw_config: Mapping[str, Any]) -> None:
    """ValueError naming what the network cannot express."""
    refuse_sliding_window(raw_config)
    wanted = {"hidden_act": "silu", "score_function": "sigmoid", "use_bias": False, "rope_scaling": None}
    bad = [name for name, value in wanted.items() if (raw_config.get(name) or value) != value]
    bad += [name for name in ("num_shared_experts",) if not raw_config.get(name)]
    if bad:
        raise ValueError(
            f"config.json has {', '.join(f'{name}: {raw_config.get(name)!r}' for name in bad)}: LLaDA2 runs as a "
            "GLM-4-MoE network here, which cannot express this. It takes silu, a sigmoid router, at least one shared "
            "expert, no bias beside those of queries, keys and values, and no scaled rope."
        )


def _config_arguments(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    _refuse(raw_config)
    rope = {
        "rope_type": "default",
        "rope_theta": raw_config["rope_theta"],
        "partial_rotary_factor": raw_config.get("partial_rotary_factor", 0.5),
    }
    return pick(raw_config, _CONFIG_KEYS) | dict(
        n_routed_experts=raw_config["num_experts"],
        n_shared_experts=raw_config["num_shared_experts"],
        norm_topk_prob=raw_config["num_experts_per_tok"] > 1,
        use_qk_norm=True,
        attention_bias=bool(raw_config.get("use_qkv_bias")),
        rope_parameters=rope,
    )


def _routed_together(raw_config: Mapping[str, Any]) -> int | None:
    """Tokens of a block whose experts are chosen together, None where each token's are. A checkpoint that was trained
    in larger blocks since names them apart (`models.spec.resized`)."""
    if not raw_config.get("expert_capacity"):
        return None
    return int(raw_config.get(WINDOW_KEY) or raw_config.get("block_size") or LLADA2.default_block_size)


def _adapt(network: Any, raw_config: Mapping[str, Any]) -> None:
    """LLaDA2.2's routers."""
    if (block_size := _routed_together(raw_config)) is None:
        return
    from models.block_router import route_blocks

    capacity, least, most = (
        int(raw_config[name]) for name in ("expert_capacity", "num_experts_per_tok", "num_experts")
    )
    if not least <= capacity <= most:
        raise ValueError(f"config.json has expert_capacity: {capacity}, which must be from {least} to {most}")
    route_blocks(network, block_size, capacity)


def _delete_insert_ids(raw_config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Of LLaDA2.2, whose config.json calls INSERT split."""
    delete_id, insert_id = raw_config.get("delete_token_id"), raw_config.get("split_token_id")
    if not raw_config.get("expert_capacity") or delete_id is None or insert_id is None:
        return None
    return int(delete_id), int(insert_id)


def _projections(raw_config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Rows of query_key_value: all query heads, all key heads, all value heads."""
    heads = int(raw_config["num_attention_heads"])
    size = int(raw_config.get("head_dim") or raw_config["hidden_size"] // heads)
    q, shared = heads * size, int(raw_config.get("num_key_value_heads") or heads) * size
    return {"q_proj": (0, q), "k_proj": (q, q + shared), "v_proj": (q + shared, q + 2 * shared)}


def _pieces(raw_config: Mapping[str, Any], weight: str, shape: Sequence[int]) -> list[Piece]:
    module, _, kind = weight.rpartition(".")
    if module == "model.embed_tokens":
        return [Piece(f"model.word_embeddings.{kind}")]
    if kind == "e_score_correction_bias":
        return [Piece(f"{module}.expert_bias")]
    layer, _, name = module.partition(".self_attn.")
    if name in (projections := _projections(raw_config)):
        return [Piece(f"{layer}.attention.query_key_value.{kind}", projections[name])]
    if stored := _INNER.get(f"self_attn.{name}"):
        return [Piece(f"{layer}.{stored}.{kind}")]
    return expert_pieces(raw_config, weight, shape)


LLADA2 = Family(
    name="llada2",
    model_types=("llada2_moe",),
    attention="block",
    model_class="Glm4MoeForCausalLM",
    config_arguments=_config_arguments,
    adapt=_adapt,
    pieces=_pieces,
    mask_token="<|mask|>",
    mask_id=156895,
    tokenizer_class="PreTrainedTokenizerFast",
    chat=ChatFormat(
        turn="<role>%s</role>%s",
        roles=(("system", "SYSTEM"), ("user", "HUMAN")),
        end_of_turn="<|role_end|>",
        assistant="<role>ASSISTANT</role>",
        system="detailed thinking off",
        after_system="\ndetailed thinking off",
    ),
    default_block_size=32,
    whole_blocks=_routed_together,
    delete_insert_ids=_delete_insert_ids,
)
