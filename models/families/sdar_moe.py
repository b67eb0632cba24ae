"""SDAR-MoE: Qwen3-MoE weights under block-causal attention. transformers keeps a layer's experts in two tensors, the
checkpoint one tensor an expert and projection. https://github.com/JetAstra/SDAR"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.families.base import expert_pieces, pick, refuse_sliding_window
from models.families.sdar import SDAR, SDAR_KEYS

_CONFIG_KEYS = (
    *SDAR_KEYS,
    *("decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob"),
    *("num_experts", "num_experts_per_tok"),
)


def _config_arguments(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    refuse_sliding_window(raw_config)
    return pick(raw_config, _CONFIG_KEYS)


SDAR_MOE = replace(
    SDAR,
    name="sdar_moe",
    aliases=(),
    model_types=("sdar_moe",),
    model_class="Qwen3MoeForCausalLM",
    config_arguments=_config_arguments,
    pieces=expert_pieces,
)
