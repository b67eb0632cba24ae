"""A model's own responses as examples: right and fast ones, on whose denoising steps it is fine-tuned (trace
distillation, d3LLM, arXiv:2601.07568), or pairs of a right and a wrong one."""

import itertools
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from configs import naming
from configs.schema import Config
from data.tasks import Example
from data.traces import is_graded, is_right, speed_of
from models.spec import CheckpointSpec
from train.algorithm.masking import Method
from train.setup.blocks import Blocks
from train.setup.eval_sets import COMPARED

logger = logging.getLogger(__name__)


def chosen_traces(
    examples: Sequence[Example], config: Config, spec: CheckpointSpec, method: Method, key: str
) -> list[Example]:
    """The examples of a set of `key` that are used: under dataset.traces_per_task the fastest right responses of each
    task; none of the model that an evaluation compared with. ValueError where none is left, or where responses were
    sampled in blocks of another size than the one that replays them."""
    count = config.dataset.traces_per_task
    kept = [example for example in examples if not _is_compared(example)]
    if len(kept) < len(examples):
        logger.warning("%s: %d responses of model.compared_with are left out", key, len(examples) - len(kept))
    kept = fastest(kept, count) if count else kept
    if method.as_sampled and spec.family.attention == "block":
        _check_blocks(kept, Blocks.of(config, spec, "sft").trained, key)
    return kept


def right_and_wrong(examples: Sequence[Example], count: int, key: str, most_tasks: int = 0) -> list[Example]:
    """At most `count` pairs of each prompt of a task, chosen and rejected one after the other: its first right response
    with its first wrong one, then the second ones, in the order of the file; of its first `most_tasks` tasks (0: all).
    A response without a number as its reward is neither, and a warning counts them. ValueError where no task has
    both."""
    of_task: dict[Hashable, tuple[list[Example], list[Example]]] = {}
    tasks = [*dict.fromkeys(task_of(example.trace or {}) for example in examples)]
    used, ungraded = {*tasks[: most_tasks or None]}, 0
    for example in examples:
        trace = example.trace or {}
        if task_of(trace) not in used:
            continue
        if not is_graded(trace):
            ungraded += 1
            continue
        sides = of_task.setdefault((*task_of(trace), tuple(trace["prompt_ids"])), ([], []))
        sides[0 if is_right(trace) else 1].append(example)
    if ungraded:
        logger.warning("%s: %d responses have no number as their reward: left out", key, ungraded)
    pairs = [pair for sides in of_task.values() for pair in itertools.islice(zip(*sides, strict=False), count)]
    if not pairs:
        raise ValueError(
            f"{key}: no task of its {len(examples)} responses has both a right one (a reward of 1 or more) and a wrong "
            "one, which are a pair: sample more responses a task, or other tasks."
        )
    return [side for pair in pairs for side in pair]


def _is_compared(example: Example) -> bool:
    return example.trace is not None and str(example.trace.get("entry", "")).startswith(f"{COMPARED}/")


def task_of(trace: Mapping[str, Any]) -> tuple[str, str]:
    """(set, task) of a response. Ids of tasks are those of their set. Files of eval.py that name no set have it in the
    name of the entry, before that of the decoding."""
    label = trace.get("set") or str(trace.get("entry", "")).rpartition("/")[0]
    return str(label), str(trace.get("task"))


def fastest(examples: Sequence[Example], count: int) -> list[Example]:
    """The `count` right responses of each task with the most tokens a denoising step, in the order of the file."""
    with naming("dataset.traces_per_task"):
        if missing := sum(example.trace is None for example in examples):
            raise ValueError(
                f"{missing} of {len(examples)} examples are no responses of a model: give the samples.jsonl of eval.py "
                "or the rollouts.jsonl of rl.py, or set it to 0."
            )
        right = [i for i, example in enumerate(examples) if example.trace and is_right(example.trace)]
        if not right:
            raise ValueError(f"none of the {len(examples)} responses is right (has a reward of 1 or more).")
    traces = [example.trace or {} for example in examples]
    of_task: dict[tuple[str, str], list[int]] = {}
    for i in sorted(right, key=lambda i: -speed_of(traces[i])):
        of_task.setdefault(task_of(traces[i]), []).append(i)
    return [examples[i] for i in sorted(i for places in of_task.values() for i in places[:count])]


def _check_blocks(examples: Sequence[Example], block_size: int, key: str) -> None:
    sizes = {example.trace.get("block_size") for example in examples if example.trace}
    if other := sizes - {block_size, None}:
        raise ValueError(
            f"{key} has responses that were sampled in blocks of {', '.join(map(str, other))}, and "
            f"training.block_size is {block_size}: their steps are replayed in blocks of the same size. Set it to that."
        )
