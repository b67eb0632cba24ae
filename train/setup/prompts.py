"""Tasks as prompts, tokenised and within the model's positions; responses as text, with the columns of rewards."""

import functools
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import models
from configs import find, naming
from configs.schema import Config, DatasetConfig, DecodeConfig
from data.control import encode, uncut
from data.shots import load_shots
from data.tasks import Task, load_tasks, resolve_dataset
from data.templates import DESCRIPTION, Format, Writer
from models import DiffusionLM
from models.families import Family
from models.vision.drawing import as_images
from models.vision.images import image_digest
from sample import Rollout
from train.setup.pictures import Eyes, image_root, usable

logger = logging.getLogger(__name__)

LONGEST_COLUMN = 2000
_DECODED_AT_ONCE = 64
"""Drawn pictures that are pixels on the device at a time: of 512 x 512, 200 MB."""


@dataclass(frozen=True)
class Prompt:
    """A task ready to sample: its text and token ids; of pictures in length alone, until they are `seen`.

    guarded: the text as it is tokenised (`data.control`), where it has pictures. picture_tokens: ids of pictures. of:
    the label of its data set, where there are several.
    """

    task: Task
    text: str
    ids: list[int]
    guarded: str = ""
    picture_tokens: int = 0
    seen: models.Prompt | None = None
    of: str = ""

    @property
    def sampled(self) -> models.Prompt | list[int]:
        """What the sampler takes."""
        return self.ids if self.seen is None else self.seen

    @functools.cached_property
    def images(self) -> dict[str, str | bytes]:
        """Digest -> picture, in order, of those that have a file or bytes; none before they are seen."""
        if self.seen is None:
            return {}
        pairs = zip(self.seen.digests, self.task.images, strict=True)
        return {given or image_digest(image): image for given, image in pairs if not isinstance(image, tuple)}

    def row(self, completion: str) -> dict[str, Any]:
        """A response's log columns of the task, besides what was sampled and earned."""
        task = self.task
        named: dict[str, Any] = {"task": task.id, "prompt": self.text, "completion": completion, "answer": task.answer}
        named |= {"images": [*self.images]} if self.images else {}
        named |= {"set": self.of} if self.of else {}
        return named | {"columns": self._columns}

    @functools.cached_property
    def _columns(self) -> dict[str, Any]:
        """The task's columns as JSON has them, without those of more than LONGEST_COLUMN characters (tests)."""
        columns = {}
        for name, value in self.task.columns.items():
            text = json.dumps(value, default=str)
            if len(text) <= LONGEST_COLUMN:
                columns[name] = json.loads(text, parse_constant=lambda _: None)
        return columns


@dataclass(frozen=True)
class PromptSource:
    """Tasks that are sampled: name: of their data set, or its path; data_type: their kind; max_tasks: the first so many
    of them, 0 = all; decode: the section of decoding; columns: names of its own columns, before dataset.columns."""

    name: str
    data_type: str
    max_tasks: int
    decode: DecodeConfig
    columns: Mapping[str, str] = field(default_factory=dict)

    def columns_in(self, dataset: DatasetConfig) -> dict[str, str]:
        """The wanted names of columns -> those of its file."""
        return {**dataset.columns, **self.columns}


def load_prompts(config: Config, source: PromptSource, model: DiffusionLM) -> list[Prompt]:
    """The tasks of a source as token ids. A column that some of the tasks have is None in the others.

    Prompts over training.max_prompt_len are dropped and counted in one warning, or an error, by policy
    (dataset.over_long_prompts); so are prompts that hold the mask token, which would count as masked positions.
    ValueError where a prompt and its response exceed the model's positions.
    """
    path = resolve_dataset(source.name, folder=find(config.dataset.folder), seed=config.dataset.seed)
    tasks = _tasks(path, source, config.dataset, model.spec.family)
    writer, eyes = Writer(format_of(config, source, model.spec.family), tokenizer_of(model)), Eyes.of(config, model)
    prompts = usable(tasks, lambda task: tokenise(task, model, writer, eyes), lambda task: task.id, f"{path}: tasks")
    prompts = _without_masks(prompts, model.mask_id, path)
    prompts = _within(prompts, config.training.max_prompt_len, path, config.dataset)
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    described = f"the {len(longest.ids)} tokens of {path}'s prompt {longest.task.id}"
    if longest.picture_tokens:
        described += f" ({longest.picture_tokens} of its pictures)"
    require_room(model.hf_config.max_position_embeddings, len(longest.ids), described, source.decode)
    return prompts


def see(prompts: Sequence[Prompt], eyes: Eyes, *, needed: bool = True, keep: bool = True) -> list[Prompt]:
    """The prompts with their pictures encoded, without those whose pictures cannot be used (`usable`), which are the
    same on all ranks. needed: ValueError where none is left. keep: the pixels, which else are read again when the
    prompt is at work."""

    def seen(prompt: Prompt) -> Prompt:
        if not prompt.picture_tokens:
            return prompt
        made = eyes.see(prompt.guarded, prompt.task.images)
        if not keep:
            made.forget()
        return replace(prompt, ids=made.ids, seen=made)

    return usable(prompts, seen, lambda prompt: prompt.task.id, "tasks", needed=needed)


def _tasks(path: Path, source: PromptSource, config: DatasetConfig, family: Family) -> list[Task]:
    root = image_root(config, path, family, source.data_type)
    tasks = load_tasks(path, data_type=source.data_type, columns=source.columns_in(config), image_root=root)
    tasks = tasks[: source.max_tasks] if source.max_tasks else tasks
    columns = dict.fromkeys(name for task in tasks for name in task.columns)
    return [replace(task, columns=columns | task.columns) for task in tasks]


def _without_masks(prompts: list[Prompt], mask_id: int, path: Path) -> list[Prompt]:
    """The prompts without the mask token. ValueError where none is left."""
    masked = [prompt for prompt in prompts if mask_id in prompt.ids]
    if prompts and len(masked) == len(prompts):
        raise ValueError(
            f"{path}: no prompt is left: all {len(masked)} hold the mask token. Take it out of the questions."
        )
    if masked:
        logger.warning(
            "%s: %d of %d prompts hold the mask token (first %s): dropped",
            *(path, len(masked), len(prompts), masked[0].task.id),
        )
    return [prompt for prompt in prompts if mask_id not in prompt.ids]


def _within(prompts: list[Prompt], most_tokens: int, path: Path, config: DatasetConfig) -> list[Prompt]:
    """The prompts of at most so many tokens of text: those of pictures do not count. ValueError where none is left."""
    tokens = [len(prompt.ids) - prompt.picture_tokens for prompt in prompts]
    kept = [prompt for prompt, length in zip(prompts, tokens, strict=True) if length <= most_tokens]
    if len(kept) < len(prompts):
        longest = max(tokens)
        first = next(p.task.id for p, length in zip(prompts, tokens, strict=True) if length > most_tokens)
        drop_over_long(
            f"{path}: {len(prompts) - len(kept)} of {len(prompts)} prompts exceed training.max_prompt_len="
            f"{most_tokens} tokens (longest {longest}, first {first})",
            config,
        )
    if not kept:
        raise ValueError(
            f"{path}: no prompt is left: {len(prompts)} exceed training.max_prompt_len={most_tokens}. Raise it."
        )
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
    """Warns that over-long prompts are dropped; under dataset.over_long_prompts=error, a ValueError."""
    if config.over_long_prompts == "error":
        raise ValueError(f"{text}. Raise training.max_prompt_len or set dataset.over_long_prompts=drop.")
    logger.warning("%s: dropped", text)


def tokenise(task: Task, model: DiffusionLM, writer: Writer, eyes: Eyes | None = None) -> Prompt:
    """The task's prompt as token ids. Control tokens of the template count as such; those of the question are text, but
    under the template "plain". ImageFault for a picture that cannot be used; eyes: default the model's own way."""
    text = writer.prompt(task)
    if writer.how.template == DESCRIPTION:
        made = model.drawing_prompt(text, lambda text: encode(tokenizer_of(model), text))
        return Prompt(task, uncut(text), made.ids)
    if not task.images:
        ids = encode(tokenizer_of(model), text)
        require_known(model, ids, f"the prompt of task {task.id}")
        return Prompt(task, uncut(text), ids)
    ids, picture_tokens = (eyes or Eyes(model)).outline(text, task.images)
    return Prompt(task, uncut(text), ids, text, picture_tokens)


def format_of(config: Config, source: PromptSource, family: Family) -> Format:
    """The prompt format of a source's tasks."""
    return Format(
        family.name,
        source.data_type,
        config.dataset.template if source.decode.output == "text" else DESCRIPTION,
        source.decode.start_with_think,
        config.reward.answer_must_in_box,
        config.dataset.add_think_prompt,
        config.dataset.system,
        shots_of(config),
    )


def shots_of(config: Config) -> tuple[tuple[str, str], ...]:
    """(question, answer) of dataset.few_shot. ValueError, with the key, where that is neither a list of such nor a data
    file with them."""
    given, dataset = config.dataset.few_shot, config.dataset
    entries = given if isinstance(given, list) else [given] if given else []
    with naming("dataset.few_shot"):
        files = [
            resolve_dataset(entry, folder=find(dataset.folder), seed=dataset.seed) if isinstance(entry, str) else entry
            for entry in entries
        ]
        return tuple(shot for file in files for shot in load_shots(file, dataset.columns))


def require_known(model: DiffusionLM, ids: Sequence[int], what: str) -> None:
    """ValueError where an id is beyond the embedding: the tokenizer was extended and the model was not."""
    if max(ids, default=0) >= model.hf_config.vocab_size:
        token = tokenizer_of(model).convert_ids_to_tokens(max(ids))
        raise ValueError(
            f"{what} holds the token {token!r} (id {max(ids)}), beyond the {model.hf_config.vocab_size} ids of the "
            "model's embedding: take the tokenizer that belongs to the model, or leave that text out."
        )


def tokenizer_of(model: DiffusionLM):  # type: ignore[no-untyped-def]
    if model.tokenizer is None:
        raise ValueError(
            "the model folder has no tokenizer (tokenizer.json or vocab files): text cannot be read or written."
        )
    return model.tokenizer


def completion_text(rollout: Rollout, model: DiffusionLM) -> str:
    """The response as text, once, for rewards and people: without the stop id that ends it, all other ids as they
    decode; of a picture, how large it is."""
    if rollout.suffix_ids:
        return f"[picture of {rollout.num_response_tokens} codes]"
    ids = rollout.token_ids[:-1] if rollout.finish_reason == "stop" else rollout.token_ids
    return tokenizer_of(model).decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def drawn_images(rollouts: Sequence[Rollout], model: DiffusionLM) -> list[Image.Image]:
    """The pictures that were drawn, decoded."""
    codes_BN = torch.tensor([rollout.token_ids for rollout in rollouts]) - model.need_drawing().codes.start
    return [image for some in codes_BN.split(_DECODED_AT_ONCE) for image in as_images(model.decode_images(some))]


def reward_columns(
    prompts: Sequence[Prompt], rollouts: Sequence[Rollout], model: DiffusionLM
) -> dict[str, list[object]]:
    """What a reward may take by name: every column of the tasks, and what the sampler knows, with the pictures that
    `model` drew. Aligned with the rollouts."""
    per_prompt = len(rollouts) // max(1, len(prompts))
    tasks = [p.task for p in itertools.chain.from_iterable(itertools.repeat(p, per_prompt) for p in prompts)]
    names = sorted({name for task in tasks for name in task.columns} - {"prompts", "completions"})
    columns: dict[str, list[object]] = {name: [task.columns.get(name) for task in tasks] for name in names}
    columns["completion_ids"] = [r.token_ids for r in rollouts]
    columns["finish_reason"] = [r.finish_reason for r in rollouts]
    columns["num_steps"] = [r.num_steps for r in rollouts]
    if any(rollout.suffix_ids for rollout in rollouts):
        columns["completion_images"] = [*drawn_images(rollouts, model)]
    if any(task.pictures for task in tasks):
        columns["pictures"] = [task.pictures for task in tasks]
    return columns
