"""LLaDA-V: a Llama network under its own names, with full attention, that reads pictures.
https://github.com/ML-GSAI/LLaDA-V

The tower is in the checkpoint; config.json does not say its sizes. They are read off the shapes of its weights; heads
and picture size, which no weight shows, are so400m's unless the folder's vision_tower_config.json has them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from models.families.base import CONFIG_KEYS, ChatFormat, Decoding, Family, PictureSizes, Piece, pick

TOWER_FILE = "vision_tower_config.json"
_SIZES = "vision_tower_config"
_TOWER = "model.vision_tower.vision_tower.vision_model."
_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_STORED = {
    "vision.tower.": _TOWER,
    "vision.projector.": "model.mm_projector.",
    "vision.image_newline": "model.image_newline",
}


def _beside(tower: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The tower's sizes: of its weights, else of its file, else so400m's."""
    sizes = _SO400M | {name: tower[name] for name in _SO400M if name in tower}
    layers = [name.split(".")[6] for name in shapes if name.startswith(f"{_TOWER}encoder.layers.")]
    if layers:
        hidden, _, patch, _ = shapes[f"{_TOWER}embeddings.patch_embedding.weight"]
        inner = shapes[f"{_TOWER}encoder.layers.0.mlp.fc1.weight"][0]
        sizes |= {
            "hidden_size": hidden,
            "intermediate_size": inner,
            "patch_size": patch,
            "num_hidden_layers": 1 + max(map(int, layers)),
        }
        positions = shapes[f"{_TOWER}embeddings.position_embedding.weight"][0]
        if (sizes["image_size"] // patch) ** 2 != positions:
            raise ValueError(
                f"the vision tower has {math.isqrt(positions)} x {math.isqrt(positions)} patches of {patch} px, which "
                f"pictures of image_size {sizes['image_size']} do not have: put image_size and num_attention_heads "
                f"into {TOWER_FILE} beside config.json"
            )
    return {_SIZES: sizes}


def _adapt(network: Any, raw_config: Mapping[str, Any]) -> None:
    from transformers import SiglipVisionConfig

    from models.vision.llava import LlavaVision

    network.vision = LlavaVision(SiglipVisionConfig(vision_use_head=False, **raw_config[_SIZES]), raw_config)


def _pieces(raw_config: Mapping[str, Any], weight: str, shape: Sequence[int]) -> list[Piece]:
    for own, stored in _STORED.items():
        if weight.startswith(own):
            return [Piece(stored + weight.removeprefix(own))]
    return [Piece(weight)]


def _picture_sizes(raw_config: Mapping[str, Any]) -> PictureSizes:
    from models.vision.tiles import most_tiles, most_tokens, tile_grid

    tower = raw_config[_SIZES]
    grid = tile_grid(raw_config, tower["image_size"], tower["patch_size"])
    seen = most_tiles(grid) * grid.patches**2
    return PictureSizes(
        most_tokens(grid), seen, tower["num_hidden_layers"], tower["hidden_size"], tower["intermediate_size"], grid
    )


LLADAV = Family(
    name="lladav",
    model_types=("llava_llada",),
    attention="full",
    model_class="LlamaForCausalLM",
    config_arguments=lambda raw_config: pick(raw_config, (*CONFIG_KEYS, "attention_bias", "mlp_bias")),
    adapt=_adapt,
    beside=(TOWER_FILE, _beside),
    pieces=_pieces,
    mask_token="<|mdm_mask|>",
    mask_id=126336,
    tokenizer_class="PreTrainedTokenizerFast",
    chat=ChatFormat(
        opening="<|startoftext|>",
        turn="<|start_header_id|>%s<|end_header_id|>\n\n%s",
        end_of_turn="<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        system="You are a helpful language and vision assistant. You are able to understand the visual content that "
        "the user provides, and assist the user with a variety of tasks using natural language.",
        trims=True,
    ),
    vision=lambda model, image_tokenizer: model.vision,
    trains_vision=True,
    picture_sizes=_picture_sizes,
    decoding=Decoding(threshold_passes=True, stop_narrows=True, block_size=32),
)
