"""SDAR and TraDo: Qwen3 weights under block-causal attention on the absolute grid. https://github.com/JetAstra/SDAR"""

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from models.families.base import Family, pick

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


def refuse_sliding_window(raw_config: Mapping[str, Any]) -> None:
    if raw_config.get("use_sliding_window"):
        raise ValueError("config.json has use_sliding_window: true; attention over a window is not supported.")


def _hf_config(raw_config: Mapping[str, Any]) -> Qwen3Config:
    refuse_sliding_window(raw_config)
    return Qwen3Config(**pick(raw_config, CONFIG_KEYS))


SDAR = Family(
    name="sdar",
    aliases=("trado",),
    model_types=("sdar",),
    attention="block",
    model_class=Qwen3ForCausalLM,
    hf_config=_hf_config,
    mask_token="<|MASK|>",
    mask_id=151669,
    end_of_turn="<|im_end|>",
    tokenizer_class=Qwen2Tokenizer,
    default_block_size=4,
)
