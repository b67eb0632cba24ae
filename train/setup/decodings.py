"""A config's sections of decoding -> sampling configs, and the model that samples."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from configs import naming
from configs.schema import DecodeConfig, RolloutConfig, TrainingConfig
from models import DiffusionLM
from models.families import Family
from models.spec import CheckpointSpec
from runtime.doors import is_file_target
from sample import SamplingConfig
from sample.config import CacheMode, cache_of, check_canvases, check_edits, check_remasks, moving_ids
from sample.doors import Given, open_strategy, open_target
from sample.unmask import schedule
from train.setup.prompts import tokenizer_of

UNSIZED_SLOTS = 256
"""Where neither the user nor the memory of a GPU limits them."""
logger = logging.getLogger(__name__)


def sampling_entries(
    decode: DecodeConfig, model: DiffusionLM, blocks: Sequence[int], *, seed: int, deterministic: bool
) -> dict[str, SamplingConfig]:
    """Name -> sampling config for each entry of the parallel lists strategy, top_k, block_size, steps_per_block,
    threshold, edit_threshold, temperature.

    blocks: tokens of a block of each entry (`Blocks`).
    A scalar goes with every entry; lists must be of one length. ValueError otherwise, or where a choice does not
    fit the model.
    """
    check_steps(decode, blocks)
    cache = cache_mode(decode, model.spec.family)
    horizon = decode.further_horizon if cache == "prefix" else None
    of_the_run: dict[str, Any] = {"cache": cache, "further_horizon": horizon}
    of_the_run |= {"stop_ids": _stop_ids(decode, model), "seed": seed, "deterministic": deterministic}
    entries: dict[str, SamplingConfig] = {}
    for chosen, block_size in zip(decodings(decode), blocks, strict=True):
        chosen |= {"block_size": block_size} | of_the_run
        config = SamplingConfig(**chosen).for_model(model)
        if model.spec.family.noise == "mask":
            _warn_of_idle_steps(decode, config)
        if decode.steps is not None:
            config = replace(config, steps_per_block=_divided_steps(decode, config))
        mode = "greedy" if config.greedy else f"T{config.temperature:g}"
        strategy = chosen["strategy"].rpartition(":")[2].removeprefix("low_confidence_")
        name = f"{strategy}-b{config.block_size}-{mode}"
        name += f"-k{config.top_k}" if config.top_k > 1 else ""
        name += f"-t{config.threshold:g}" if isinstance(decode.threshold, list) else ""
        edited = isinstance(decode.edit_threshold, list) and config.edit_threshold is not None
        name += f"-e{config.edit_threshold:g}" if edited else ""
        entries[_unused(name, entries)] = config
    return entries


def decodings(decode: DecodeConfig) -> list[dict[str, Any]]:
    """Fields of SamplingConfig -> values, for each entry of the parallel lists: those that the section has too.
    Parameters of strategies go to a user's own among several."""
    lists = decode.parallel_lists()
    shared = {item.name: getattr(decode, item.name) for item in fields(SamplingConfig) if hasattr(decode, item.name)}
    shared["max_slots"] = decode.max_slots or UNSIZED_SLOTS
    entries = range(len(next(iter(lists.values()), [None])))
    chosen = [shared | {name: values[i] for name, values in lists.items()} for i in entries]
    if any(is_file_target(entry["strategy"]) for entry in chosen):
        chosen = [entry if is_file_target(entry["strategy"]) else entry | {"strategy_params": {}} for entry in chosen]
    return chosen


def check_revision(decode: DecodeConfig, spec: CheckpointSpec) -> None:
    """ValueError, naming the key, where a checkpoint has no rule for the edits or the remasking of a section."""
    for chosen in decodings(decode):
        check_edits(chosen["edit_threshold"], spec.family, decode.key("edit_threshold"))
        moves = moving_ids(chosen["edit_threshold"], spec)
        check_remasks(decode.remask_threshold, moves, decode.key("remask_threshold"))


def check_merging(training: TrainingConfig, rollout: RolloutConfig, spec: CheckpointSpec) -> None:
    """ValueError where neighbouring steps are to be merged between which edits move tokens."""
    if training.shrink > 1 and moving_ids(rollout.edit_threshold, spec) is not None:
        raise ValueError(
            f"training.shrink={training.shrink}: edits of {spec.folder} delete and insert tokens, so that a place is "
            f"another one in the next step. Set training.shrink=1, or {rollout.key('edit_threshold')}=null."
        )


def check_decodings(*sections: DecodeConfig) -> None:
    """ValueError, naming the key, for all about sections that can be known to fail before a model is loaded."""
    named = ("strategy", "target", "strategy_params", "target_params")
    for decode in sections:
        for chosen in decodings(decode):
            choices = SamplingConfig(**{name: value for name, value in chosen.items() if name not in named})
            strategy, target = (
                Given(decode.key(name), chosen[name], chosen[f"{name}_params"], decode.key(f"{name}_params"))
                for name in ("strategy", "target")
            )
            open_strategy(strategy, choices)
            open_target(target)


def check_kind(decode: DecodeConfig, spec: CheckpointSpec) -> None:
    """ValueError where a section's choices are of canvases and the checkpoint's family is one of masks, or the other
    way round."""
    for chosen in decodings(decode):
        with naming(decode.section):
            check_canvases(SamplingConfig(**chosen), spec)
    if decode.steps is not None and spec.family.noise == "uniform":
        raise ValueError(
            f"{decode.key('steps')}={decode.steps}: all canvases of {spec.family.name} have one number of steps; set "
            f"{decode.key('steps_per_block')}."
        )


def cache_mode(decode: DecodeConfig, family: Family) -> CacheMode:
    """The cache that a section's samplers have. Approximate ones are of full attention: a block family keeps its exact
    one. ValueError where the config wants an exact one under full attention."""
    requested: CacheMode = decode.cache  # type: ignore[assignment]
    if family.attention == "block" and requested in ("prefix", "dual"):
        logger.warning(
            "%s: %s approximates full attention; %s keeps its exact cache", decode.key("cache"), requested, family.name
        )
        requested = "auto"
    try:
        return cache_of(requested, family)
    except ValueError as error:
        raise ValueError(f"{decode.key('cache')}: {error}") from None


def _warn_of_idle_steps(decode: DecodeConfig, config: SamplingConfig) -> None:
    steps, size = config.steps_per_block, config.block_size
    if isinstance(steps, int) and size is not None and steps > size:
        logger.warning(
            "%s=%d is more than a block's %d tokens: at most %d steps are taken, a token each",
            *(decode.key("steps_per_block"), steps, size, size),
        )


def check_steps(decode: DecodeConfig, blocks: Sequence[int]) -> None:
    """ValueError where the steps of a section are given twice, or are fewer than the blocks of a response. blocks: as
    of `sampling_entries`."""
    if decode.steps is not None and decode.steps_per_block is not None:
        raise ValueError(
            f"{decode.key('steps')}={decode.steps} and {decode.key('steps_per_block')}={decode.steps_per_block} "
            "mean the same: give one."
        )
    for block_size in blocks:
        decode.check_steps(block_size)


def _divided_steps(decode: DecodeConfig, config: SamplingConfig) -> list[int]:
    """Steps of each block, from those of the whole response."""
    assert config.block_size is not None and decode.steps is not None
    return schedule(decode.steps, -(-config.max_new_tokens // config.block_size))


def inference_model(model: DiffusionLM, dtype: torch.dtype) -> DiffusionLM:
    """The model that samples: the trained one itself, or a copy in the type that sampling wants."""
    return model if dtype == model.dtype else model.copy_as(dtype)


def _stop_ids(decode: DecodeConfig, model: DiffusionLM) -> list[int]:
    ids = list(model.eos_ids)
    for text in decode.stop_token_list or []:
        encoded = tokenizer_of(model)(text, add_special_tokens=False)["input_ids"]
        if len(encoded) != 1:
            raise ValueError(
                f"{decode.key('stop_token_list')}: {text!r} is {len(encoded)} tokens, not one; only single tokens can "
                "stop a response."
            )
        ids += [i for i in encoded if i not in ids]
    return ids


def _unused(name: str, taken: dict[str, SamplingConfig]) -> str:
    return next(n for n in itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2))) if n not in taken)
