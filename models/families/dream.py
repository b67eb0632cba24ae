"""Dream and DiffuCoder: Qwen2 weights under full attention; token i is predicted at position i - 1.
https://github.com/DreamLM/Dream"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.families.base import CHATML, CONFIG_KEYS, Decoding, Family, pick, refuse_sliding_window


def _config_arguments(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    refuse_sliding_window(raw_config)
    if raw_config.get("use_mrope"):
        raise ValueError("config.json has use_mrope: true; positions of several dimensions are not supported.")
    return pick(raw_config, CONFIG_KEYS)


DREAM = Family(
    name="dream",
    aliases=("diffucoder",),
    model_types=("Dream",),
    attention="full",
    logit_shift=True,
    model_class="Qwen2ForCausalLM",
    config_arguments=_config_arguments,
    mask_token="<|mask|>",
    mask_id=151666,
    tokenizer_class="Qwen2Tokenizer",
    chat=replace(CHATML, system="You are a helpful assistant."),
    decoding=Decoding(
        schedule="timesteps",
        opens_with_first=True,
        dynamic_at_least_one=True,
        threshold_passes=True,
        pads_end=True,
        block_size=32,
    ),
)
