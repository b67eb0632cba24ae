"""SDAR and TraDo: Qwen3 weights under block-causal attention on the absolute grid. https://github.com/JetAstra/SDAR"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.families.base import CHATML, CONFIG_KEYS, Family, pick, refuse_sliding_window

SDAR_KEYS = (*CONFIG_KEYS, "head_dim", "attention_bias")


def _config_arguments(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    refuse_sliding_window(raw_config)
    return pick(raw_config, SDAR_KEYS)


SDAR = Family(
    name="sdar",
    aliases=("trado",),
    model_types=("sdar",),
    attention="block",
    model_class="Qwen3ForCausalLM",
    config_arguments=_config_arguments,
    mask_token="<|MASK|>",
    mask_id=151669,
    tokenizer_class="Qwen2Tokenizer",
    chat=replace(
        CHATML,
        thinking_assistant="<|im_start|>assistant<think>\n",
        math="{{problem}}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    ),
    default_block_size=4,
)
