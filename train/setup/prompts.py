"""Config sections -> sampling configs, tokenised prompts and answers as text."""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from configs import find
from configs.schema import DatasetConfig, DecodeConfig
from data.tasks import Task, load_tasks, resolve_dataset
from data.templates import render_prompt
from models import DiffusionLM
from models.families import Family
from runtime.doors import is_file_target
from sample import Rollout, SamplingConfig
from sample.config import CacheMode, cache_of
from sample.doors import open_strategy, open_target
from sample.unmask import schedule

logger = logging.getLogger(__name__)


def sampling_entries(
    decode: DecodeConfig, model: DiffusionLM, blocks: Sequence[int], *, seed: int, deterministic: bool
) -> dict[str, SamplingConfig]:
    """Name -> sampling config for each entry of the parallel lists strategy, top_k, block_size, steps_per_block.

    blocks: tokens of a block of each entry (`Blocks`).
    A scalar goes with every entry; lists must be of one length. ValueError otherwise, or where a choice does not
    fit the model.
    """
    cache = cache_mode(decode, model.spec.family)
    horizon = decode.further_horizon if cache == "prefix" else None
    of_the_run: dict[str, Any] = {"cache": cache, "further_horizon": horizon}
    of_the_run |= {"stop_ids": _stop_ids(decode, model), "seed": seed, "deterministic": deterministic}
    entries: dict[str, SamplingConfig] = {}
    for chosen, block_size in zip(decodings(decode), blocks, strict=True):
        chosen |= {"block_size": block_size} | of_the_run
        config = SamplingConfig(**chosen).for_model(model)
        _warn_of_idle_steps(decode, config)
        if decode.steps is not None:
            config = replace(config, steps_per_block=_divided_steps(decode, chosen["steps_per_block"], config))
        mode = "greedy" if config.greedy else f"T{config.temperature:g}"
        strategy = chosen["strategy"].rpartition(":")[2].removeprefix("low_confidence_")
        name = f"{strategy}-b{config.block_size}-{mode}"
        name += f"-k{config.top_k}" if config.top_k > 1 else ""
        entries[_unused(name, entries)] = config
    return entries


def decodings(decode: DecodeConfig) -> list[dict[str, Any]]:
    """Fields of SamplingConfig -> values, for each entry of the parallel lists: those that the section has too.
    Parameters of strategies go to a user's own among several."""
    lists = decode.parallel_lists()
    shared = {item.name: getattr(decode, item.name) for item in fields(SamplingConfig) if hasattr(decode, item.name)}
    entries = range(len(next(iter(lists.values()), [None])))
    chosen = [shared | {name: values[i] for name, values in lists.items()} for i in entries]
    if any(is_file_target(entry["strategy"]) for entry in chosen):
        chosen = [entry if is_file_target(entry["strategy"]) else entry | {"strategy_params": {}} for entry in chosen]
    return chosen


def check_decodings(*sections: DecodeConfig) -> None:
    """ValueError, naming the key, for all about sections that can be known to fail before a model is loaded."""
    named = ("strategy", "target", "strategy_params", "target_params")
    for decode in sections:
        for chosen in decodings(decode):
            choices = SamplingConfig(**{name: value for name, value in chosen.items() if name not in named})
            open_strategy(decode.key("strategy"), chosen["strategy"], chosen["strategy_params"], choices)
            open_target(decode.key("target"), chosen["target"], chosen["target_params"])


def cache_mode(decode: DecodeConfig, family: Family) -> CacheMode:
    """The cache that a section's samplers have. Approximate ones are of full attention: a block family keeps its exact
    one. ValueError where a family of full attention is asked for an exact one."""
    asked: CacheMode = decode.cache  # type: ignore[assignment]
    if family.attention == "block" and asked in ("prefix", "dual"):
        logger.warning(
            "%s: %s approximates full attention; %s keeps its exact cache", decode.key("cache"), asked, family.name
        )
        asked = "auto"
    try:
        return cache_of(asked, family)
    except ValueError as error:
        raise ValueError(f"{decode.key('cache')}: {error}") from None


def _warn_of_idle_steps(decode: DecodeConfig, config: SamplingConfig) -> None:
    steps, size = config.steps_per_block, config.block_size
    if isinstance(steps, int) and size is not None and steps > size:
        logger.warning(
            "%s=%d is more than a block's %d tokens: at most %d steps are taken, a token each",
            *(decode.key("steps_per_block"), steps, size, size),
        )


def _divided_steps(decode: DecodeConfig, steps_per_block: int | None, config: SamplingConfig) -> list[int]:
    """Steps of each block, from those of the whole response."""
    assert config.block_size is not None and decode.steps is not None
    if steps_per_block is not None:
        raise ValueError(
            f"steps={decode.steps} and {decode.key('steps_per_block')}={steps_per_block} say the same: give one."
        )
    decode.check_steps(config.block_size)
    return schedule(decode.steps, -(-config.max_new_tokens // config.block_size))


def inference_model(model: DiffusionLM, dtype: torch.dtype, apart_on: torch.device | None = None) -> DiffusionLM:
    """The model that samples: the trained one itself, or a copy in the type that sampling wants. apart_on: always a
    copy, on that device."""
    return model if dtype == model.dtype and apart_on is None else model.copy_as(dtype, apart_on)


@dataclass(frozen=True)
class Prompt:
    """A task ready to sample: its text and token ids."""

    task: Task
    text: str
    ids: list[int]


def load_prompts(
    config: DatasetConfig,
    name: str,
    model: DiffusionLM,
    *,
    data_type: str,
    max_tasks: int,
    max_prompt_tokens: int,
    decode: DecodeConfig,
) -> list[Prompt]:
    """The tasks of a data set as token ids, to be answered as section `decode` says. Over-long prompts are
    dropped and counted in one warning, or an error, by policy; so are prompts that hold the mask token, which would be
    positions to fill. A column that some of the tasks have is None in the others. ValueError where a prompt and its
    answer exceed the model's positions."""
    path = resolve_dataset(name, folder=find(config.folder), seed=config.seed)
    tasks = load_tasks(path, data_type=data_type, columns=config.columns)
    tasks = tasks[:max_tasks] if max_tasks else tasks
    columns = dict.fromkeys(name for task in tasks for name in task.columns)
    tasks = [replace(task, columns=columns | task.columns) for task in tasks]
    prompts = [tokenise(task, model, data_type, config.template, decode.start_with_think) for task in tasks]
    masked = [p for p in prompts if model.mask_id in p.ids]
    if masked:
        logger.warning(
            "%s: %d of %d prompts hold the mask token (first %s): dropped",
            path, len(masked), len(prompts), masked[0].task.id,
        )  # fmt: skip
        prompts = [p for p in prompts if model.mask_id not in p.ids]
    kept = [p for p in prompts if len(p.ids) <= max_prompt_tokens]
    if len(kept) < len(prompts):
        longest = max(len(p.ids) for p in prompts)
        first = next(p.task.id for p in prompts if len(p.ids) > max_prompt_tokens)
        drop_over_long(
            f"{path}: {len(prompts) - len(kept)} of {len(prompts)} prompts exceed training.max_prompt_len="
            f"{max_prompt_tokens} tokens (longest {longest}, first {first})",
            config,
        )
    if not kept:
        raise ValueError(f"{path}: no prompt is left. Raise training.max_prompt_len={max_prompt_tokens}.")
    longest_kept = max(kept, key=lambda prompt: len(prompt.ids))
    whose = f"the {len(longest_kept.ids)} tokens of {path}'s prompt {longest_kept.task.id}"
    require_room(model.hf_config.max_position_embeddings, len(longest_kept.ids), whose, decode)
    return kept


def require_room(positions: int, prompt_tokens: int, prompt: str, decode: DecodeConfig) -> None:
    """ValueError where a prompt (`prompt` describes it) and the longest response of section `decode` exceed the model's
    positions."""
    if prompt_tokens + decode.max_new_tokens > positions:
        name = decode.key("max_new_tokens")
        raise ValueError(
            f"{name}={decode.max_new_tokens} and {prompt} exceed the {positions} positions of the model "
            f"(max_position_embeddings): lower {name} or training.max_prompt_len."
        )


def drop_over_long(text: str, config: DatasetConfig) -> None:
    """Says that over-long prompts are dropped; under dataset.over_long_prompts=error, a ValueError."""
    if config.over_long_prompts == "error":
        raise ValueError(f"{text}. Raise training.max_prompt_len or set dataset.over_long_prompts=drop.")
    logger.warning("%s: dropped", text)


def tokenise(task: Task, model: DiffusionLM, data_type: str, template: str, start_with_think: bool) -> Prompt:
    """The task's prompt under the template, as token ids (special tokens in the template count as such)."""
    text = render_prompt(
        task,
        family=model.family,
        data_type=data_type,
        template=template,
        start_with_think=start_with_think,
        chat=_chat_of(model),
    )
    return Prompt(task, text, tokenizer_of(model)(text, add_special_tokens=False)["input_ids"])


def _chat_of(model: DiffusionLM) -> Callable[[str], str] | None:
    """The tokenizer's chat template, from the user's turn to the open turn of the assistant; None without one.
    transformers runs it in a sandbox, and the turn is a value in it."""
    tokenizer = tokenizer_of(model)
    if not tokenizer.chat_template:
        return None
    return lambda turn: tokenizer.apply_chat_template(
        [{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True
    )


def tokenizer_of(model: DiffusionLM):  # type: ignore[no-untyped-def]
    if model.tokenizer is None:
        raise ValueError(
            "the model folder has no tokenizer (tokenizer.json or vocab files): text cannot be read or written."
        )
    return model.tokenizer


def completion_text(rollout: Rollout, model: DiffusionLM) -> str:
    """The answer as text, once, for rewards and people: without the stop id that ends it, all other ids as they
    decode."""
    ids = rollout.token_ids[:-1] if rollout.finish_reason == "stop" else rollout.token_ids
    return tokenizer_of(model).decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def reward_columns(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> dict[str, list[object]]:
    """What a reward may ask for by name: every column of the tasks, and what the sampler knows. Aligned with the
    rollouts."""
    per_prompt = len(rollouts) // max(1, len(prompts))
    tasks = [p.task for p in itertools.chain.from_iterable(itertools.repeat(p, per_prompt) for p in prompts)]
    names = sorted({name for task in tasks for name in task.columns} - {"prompts", "completions"})
    columns: dict[str, list[object]] = {name: [task.columns.get(name) for task in tasks] for name in names}
    columns["completion_ids"] = [r.token_ids for r in rollouts]
    columns["finish_reason"] = [r.finish_reason for r in rollouts]
    columns["num_steps"] = [r.num_steps for r in rollouts]
    return columns


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
