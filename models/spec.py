"""What a checkpoint's files say about it, read once and before any weight."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from models import lora
from models.attention import ATTENTION_NAME
from models.families import Family, find_family
from models.families.base import WINDOW_KEY
from models.folder import read_json, resolve_folder, weight_names, weight_shapes
from models.lora import Adapters

_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class CheckpointSpec:
    """A checkpoint without its weights.

    folder: where it lies. raw, generation: its config.json (completed as the family says) and generation_config.json.
    family: of its architecture.
    positions: the most tokens of a sequence. block_size: tokens of a block that it was trained in, 1 for full
    attention. adapters, base: of a folder of adapters, their settings and the checkpoint that they were trained on,
    whose config, tokenizer and weights they share; None otherwise.
    """

    folder: Path
    raw: Mapping[str, Any]
    generation: Mapping[str, Any]
    family: Family
    positions: int
    block_size: int
    adapters: Adapters | None = None
    base: "CheckpointSpec | None" = None

    @staticmethod
    def read(path: str | Path, model_base: str | None = None) -> "CheckpointSpec":
        """Of a checkpoint folder (or hub name) in its original layout, or a folder of adapters. model_base: the
        family's name, where config.json alone does not name it. ValueError: no such folder, no family that reads it, or
        a config that the family cannot express."""
        folder = resolve_folder(path)
        raw = read_json(folder / "config.json")
        if (folder / lora.CONFIG).is_file():
            return _read_adapted(folder, raw, model_base)
        names = weight_names(folder)
        family = find_family(raw, model_base, str(folder), names)
        if raw.get("quantization_config"):
            raise ValueError(
                f"{folder}/config.json has a quantization_config: quantised weights cannot be trained or sampled here; "
                "give the checkpoint in bf16, fp16 or fp32."
            )
        with config_errors(folder, family):
            if family.beside is not None:
                name, complete = family.beside
                raw = raw | complete(read_json(folder / name), weight_shapes(folder))
            layers = family.config_arguments(raw).get("num_hidden_layers", 1)  # before a list is made of so many
            if isinstance(layers, int) and layers > (most := len(names) or _MOST_LAYERS):
                raise ValueError(f"{layers} layers, which the {most} weights of its files are too few for")
            positions = _at_least_one(hf_config(family, raw).get_text_config().max_position_embeddings)
            block_size = _at_least_one(raw.get("block_size") or family.default_block_size)
            _check_delete_insert(family, raw)
        generation = read_json(folder / "generation_config.json")
        if family.noise == "uniform":
            _check_canvas_choices(folder, generation)
        return CheckpointSpec(folder, raw, generation, family, positions, block_size)

    @property
    def schedule_block_size(self) -> int:
        """Tokens of a block in decoding and training where the config names none: the checkpoint's, or the schedule's
        of a family of full attention."""
        return self.family.decoding.block_size or self.block_size


def whole_blocks(spec: CheckpointSpec) -> int:
    """Tokens that the checkpoint's network can only run together, 1 where it runs any number."""
    return (spec.family.whole_blocks(spec.raw) if spec.family.whole_blocks is not None else None) or 1


def delete_insert_ids(spec: CheckpointSpec) -> tuple[int, int] | None:
    """Ids of the checkpoint's tokens DELETE and INSERT, None where it has none."""
    return spec.family.delete_insert_ids(spec.raw) if spec.family.delete_insert_ids is not None else None


def _check_delete_insert(family: Family, raw: Mapping[str, Any]) -> None:
    """ValueError where DELETE and INSERT are no two ids of the vocabulary."""
    ids = family.delete_insert_ids(raw) if family.delete_insert_ids is not None else None
    if ids is not None and not (ids[0] != ids[1] and all(0 <= i < int(raw["vocab_size"]) for i in ids)):
        raise ValueError(f"DELETE and INSERT {ids[0]} and {ids[1]}, which must be two ids of the vocabulary")


def _check_canvas_choices(folder: Path, generation: Mapping[str, Any]) -> None:
    """ValueError where generation_config.json has no numbers for how canvases are denoised."""
    own = generation.get("sampler_config")
    bound = own.get("entropy_bound") if isinstance(own, Mapping) else None
    numbers = {name: generation.get(name) for name in ("t_max", "t_min")} | {"sampler_config.entropy_bound": bound}
    steps = generation.get("max_denoising_steps")
    wanted = [
        ("sampler_config", own, isinstance(own, Mapping), "a mapping"),
        ("max_denoising_steps", steps, _is_number(steps, int, 1), "a whole number of at least 1"),
        *(
            (name, value, _is_number(value, int | float, 0), "a number of at least 0")
            for name, value in numbers.items()
        ),
    ]
    for name, value, fits, what in wanted:
        if value is not None and not fits:
            raise ValueError(
                f"{folder}/generation_config.json has {name}: {value!r} where {what} must stand. Correct it, or copy "
                "the checkpoint again."
            )


def _is_number(value: Any, kind: Any, least: int) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and value >= least


def resized(spec: CheckpointSpec, block_size: int) -> dict[str, bytes]:
    """The files that say of what size blocks are, where it is another than the checkpoint's: its config.json, in which
    what the network runs together stays as it was."""
    if block_size == (spec.raw.get("block_size") or spec.family.default_block_size):
        return {}
    together = whole_blocks(spec)
    raw = {**spec.raw, "block_size": block_size, **({WINDOW_KEY: together} if together > 1 else {})}
    return {"config.json": (json.dumps(raw, indent=2) + "\n").encode()}


def check_block_size(spec: CheckpointSpec, tokens: int) -> None:
    """ValueError where the checkpoint's network cannot run blocks of so many tokens."""
    if spec.family.noise == "uniform" and tokens != spec.block_size:
        raise ValueError(
            f"block_size {tokens}: a canvas of {spec.folder} has {spec.block_size} tokens (canvas_length in "
            "config.json). Leave block_size out."
        )
    if tokens % (least := whole_blocks(spec)):
        raise ValueError(
            f"block_size {tokens}: {spec.folder} chooses experts for blocks of {least} tokens together "
            f"(expert_capacity in config.json). Take a multiple of {least}."
        )


def _at_least_one(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} where a whole number of at least 1 must stand")
    return value


@contextmanager
def config_errors(folder: Path, family: Family) -> Iterator[None]:
    """What goes wrong inside, over values of config.json that nobody foresaw, is a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and "config.json" in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{folder}/config.json describes no network of family {family.name} ({type(error).__name__}: {reason}): "
            "correct it, or copy the checkpoint again."
        ) from error


def _read_adapted(folder: Path, raw: Mapping[str, Any], model_base: str | None) -> CheckpointSpec:
    """The base that adapter_config.json names, with the folder's adapters and block size."""
    name = str(read_json(folder / lora.CONFIG).get("base_model_name_or_path") or "")
    try:
        base = CheckpointSpec.read(name, model_base) if name else None
    except ValueError as error:
        raise ValueError(
            f"{folder}/{lora.CONFIG}: base_model_name_or_path={name}, on which its adapters were trained: {error} Put "
            "it back there, or a link to where it is now."
        ) from error
    if base is None or base.adapters is not None:
        raise ValueError(f"{folder}/{lora.CONFIG}: base_model_name_or_path is {name!r}, which is no whole checkpoint.")
    with config_errors(folder, base.family):
        own = _at_least_one(raw.get("block_size") or base.block_size)
    return replace(
        base,
        folder=folder,
        block_size=own if base.family.attention == "block" else base.block_size,
        adapters=Adapters.of(folder),
        base=base,
    )


def hf_config(family: Family, raw: Mapping[str, Any]) -> PretrainedConfig:
    """transformers' config of the family's network, with attention through our seam (canvases: transformers' own)."""
    config = network_class(family).config_class(**family.config_arguments(raw))  # type: ignore[misc]
    config._attn_implementation = ATTENTION_NAME if family.noise == "mask" else "sdpa"
    if family.noise == "uniform":  # sizes of its smaller layers, for plans
        config.get_text_config().allow_global_per_layer_attribute_access = True
    return config


def network_class(family: Family) -> type[PreTrainedModel]:
    found: type[PreTrainedModel] | None = getattr(transformers, family.model_class, None)
    if found is None:
        raise ValueError(
            f"config.json names a network that transformers {transformers.__version__} does not have "
            f"({family.model_class}): install 5.23."
        )
    return found
