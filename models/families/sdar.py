"""SDAR and TraDo: Qwen3 weights under block-causal attention on the absolute grid. https://github.com/JetAstra/SDAR"""

from collections.abc import Mapping
from typing import Any

from models.families.base import ChatFormat, Family, pick, refuse_sliding_window

CONFIG_KEYS = (
    *(
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ),
    *("head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "attention_bias", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def _config_arguments(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    refuse_sliding_window(raw_config)
    return pick(raw_config, CONFIG_KEYS)


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
    chat=ChatFormat(
        turn="<|im_start|>%s\n%s",
        end_of_turn="<|im_end|>",
        after_turn="\n",
        assistant="<|im_start|>assistant\n",
        thinking_assistant="<|im_start|>assistant<think>\n",
        math="{{problem}}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    ),
    default_block_size=4,
)
