"""SDAR-MoE: Qwen3-MoE weights under block-causal attention. transformers keeps a layer's experts in two tensors, the
checkpoint one tensor an expert and projection. https://github.com/JetAstra/SDAR"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from models.families.base import Piece, pick, refuse_sliding_window
from models.families.sdar import SDAR, SDAR_KEYS

_CONFIG_KEYS = (
    *SDAR_KEYS,
    *("decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob"),
    *("num_experts", "num_experts_per_tok"),
)


def _config_arguments(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    refuse_sliding_window(raw_config)
    return pick(raw_config, _CONFIG_KEYS)


def _pieces(raw_config: Mapping[str, Any], weight: str, shape: Sequence[int]) -> list[Piece]:
    """experts.gate_up_proj [E, 2 * I, D] holds gate_proj [I, D] and up_proj [I, D] of each expert, experts.down_proj
    [E, D, I] their down_proj."""
    experts, _, projection = weight.rpartition(".experts.")
    if projection == "down_proj":
        return [Piece(f"{experts}.experts.{e}.down_proj.weight", at=(e,)) for e in range(shape[0])]
    if projection == "gate_up_proj":
        half = shape[1] // 2
        parts = {"gate_proj": slice(0, half), "up_proj": slice(half, 2 * half)}
        return [
            Piece(f"{experts}.experts.{e}.{name}.weight", at=(e, rows))
            for e in range(shape[0])
            for name, rows in parts.items()
        ]
    return [Piece(weight)]


SDAR_MOE = replace(
    SDAR,
    name="sdar_moe",
    aliases=(),
    model_types=("sdar_moe",),
    model_class="Qwen3MoeForCausalLM",
    config_arguments=_config_arguments,
    pieces=_pieces,
)
