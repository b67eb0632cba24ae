"""DiffusionGemma: canvases of random tokens that are denoised whole, with self-conditioning. A causal encoder keeps the
keys and values of the prompt and of finished canvases; a decoder of the same weights reads them. Text only: the vision
tower is kept with the checkpoint, frozen and unused.
https://huggingface.co/google/diffusiongemma-26B-A4B-it
"""

from collections.abc import Mapping, Sequence
from typing import Any

from models.families.base import ChatFormat, Family, Piece, pick

_KEYS = (
    *("text_config", "vision_config", "boi_token_id", "eoi_token_id", "image_token_id", "initializer_range"),
    *("tie_word_embeddings", "canvas_length"),
)
_OF_THE_TEXT = ("vocab_size", "eos_token_id", "pad_token_id", "num_hidden_layers")
_ENCODER, _DECODER = "model.encoder.language_model.", "model.decoder."


def _completed(raw_config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What other families have at the top of config.json: from text_config, and the canvas as the block."""
    text = dict(raw_config.get("text_config") or {})
    return pick(text, _OF_THE_TEXT) | {"block_size": raw_config.get("canvas_length") or 256}


def _config_arguments(raw_config: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("text_config", "vision_config"):
        if not isinstance(raw_config.get(name), Mapping):
            raise ValueError(f"config.json has {name}: {raw_config.get(name)!r} where a mapping must stand.")
    if not raw_config.get("tie_word_embeddings", True):
        raise ValueError(
            "config.json has tie_word_embeddings: false; encoder, decoder and head of one weight run here."
        )
    if not raw_config["text_config"].get("num_experts"):
        raise ValueError("config.json has text_config without num_experts: transformers' network is a mixture.")
    return pick(raw_config, _KEYS)


def _pieces(raw_config: Mapping[str, Any], weight: str, shape: Sequence[int]) -> list[Piece]:
    """The encoder's weights are the decoder's, under whose names they are kept; each has buffers of its own."""
    if weight == "model.embed_tokens.weight":
        return [Piece(f"{_DECODER}embed_tokens.weight")]
    if weight.startswith(_ENCODER) and not weight.endswith(".layer_scalar"):
        return [Piece(_DECODER + weight.removeprefix(_ENCODER))]
    return [Piece(weight)]


DIFFUSION_GEMMA = Family(
    name="diffusion_gemma",
    model_types=("diffusion_gemma",),
    attention="block",
    noise="uniform",
    model_class="DiffusionGemmaForBlockDiffusion",
    config_arguments=_config_arguments,
    beside=("config.json", _completed),
    pieces=_pieces,
    carries_vision=True,
    chat=ChatFormat(
        opening="<bos>",
        turn="<|turn>%s\n%s",
        trims=True,
        end_of_turn="<turn|>",
        after_turn="\n",
        assistant="<|turn>model\n",
        opened_response="<|channel>thought\n<channel|>",
    ),
    default_block_size=256,
)
