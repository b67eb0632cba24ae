"""A model's own responses as examples: right and fast ones, on whose denoising steps it is fine-tuned (trace
distillation, d3LLM, arXiv:2601.07568), or pairs of a right and a wrong one."""

import logging
from collections.abc import Hashable, Sequence

from configs import naming
from configs.schema import Config
from data.tasks import Example
from data.traces import first_of, is_compared, is_graded, is_right, no_grades, no_pairs, paired, speed_of, task_of
from models.spec import CheckpointSpec
from sample import Rollout
from train.algorithm.masking import Method
from train.setup.blocks import Blocks

logger = logging.getLogger(__name__)


def chosen_traces(
    examples: Sequence[Example], config: Config, spec: CheckpointSpec, method: Method, key: str
) -> list[Example]:
    """The examples of a set of `key` that are used: under dataset.traces_per_task the fastest right responses of each
    task; none of the model that an evaluation compared with. ValueError where none is left, or where responses were
    sampled in blocks of another size than the one that replays them, or have a damaged record."""
    count = config.dataset.traces_per_task
    kept = [example for example in examples if example.trace is None or not is_compared(example.trace)]
    if len(kept) < len(examples):
        logger.warning("%s: %d responses of model.compared_with are left out", key, len(examples) - len(kept))
    kept = fastest(kept, count, key) if count else kept
    _check_records(kept, spec, key)
    if method.as_sampled and spec.family.attention == "block":
        _check_blocks(kept, Blocks.of(config, spec, "sft").trained, key)
    return kept


def right_and_wrong(examples: Sequence[Example], count: int | None, key: str, most_tasks: int = 0) -> list[Example]:
    """The pairs of `data.traces.paired`, chosen and rejected one after the other; a warning counts responses without a
    number as their reward. ValueError where no task has a right and a wrong one."""
    traces = [example.trace or {} for example in examples]
    found = paired(traces, count, most_tasks)
    _warn_of_ungraded(found.ungraded, key)
    if not found.pairs:
        raise ValueError(f"{key}: {no_pairs(traces)}")
    return [examples[i] for pair in found.pairs for i in pair]


def _warn_of_ungraded(count: int, key: str) -> None:
    if count:
        logger.warning("%s: %d responses have no number as their reward: left out", key, count)


def fastest(examples: Sequence[Example], count: int, key: str) -> list[Example]:
    """The `count` right responses of each task with the most tokens a denoising step, in the order of the file; a
    warning counts those of `key` without a number as their reward."""
    traces = [example.trace or {} for example in examples]
    with naming("dataset.traces_per_task"):
        if missing := sum(example.trace is None for example in examples):
            raise ValueError(
                f"{missing} of {len(examples)} examples are no responses of a model: give the samples.jsonl of eval.py "
                "or the rollouts.jsonl of rl.py, or set it to 0."
            )
        if why := no_grades(traces):
            raise ValueError(f"{why} Or set it to 0: all are trained then.")
        _warn_of_ungraded(sum(not is_graded(trace) for trace in traces), key)
        right = [i for i, trace in enumerate(traces) if is_right(trace)]
        if not right:
            raise ValueError(f"none of the {len(examples)} responses is right (has a reward of 1 or more).")
    of_task: dict[Hashable, list[int]] = {}
    for i in sorted(right, key=lambda i: -speed_of(traces[i])):
        of_task.setdefault(task_of(traces[i]), []).append(i)
    return [examples[i] for i in sorted(i for places in of_task.values() for i in places[:count])]


def of_first_tasks(examples: Sequence[Example], most: int) -> list[Example]:
    """Those of the first `most` tasks (0: all): the responses of a model to one task, and every other example."""
    tasks = [i if example.trace is None else task_of(example.trace) for i, example in enumerate(examples)]
    used = first_of(tasks, most)
    return [example for task, example in zip(tasks, examples, strict=True) if task in used]


def _check_records(examples: Sequence[Example], spec: CheckpointSpec, key: str) -> None:
    """What `data.traces` cannot see of a record: its events, and ids right of the canvas."""
    for i, example in enumerate(examples):
        trace = example.trace or {}
        if trace.get("events") is not None:
            with naming(key):
                Rollout.from_dict({"key": (i,), **trace})
        if trace.get("suffix_ids") and spec.family.attention == "block":
            raise ValueError(
                f"{key}: response {i} has suffix_ids, which end a picture; a {spec.family.name} model writes none: "
                "leave it out."
            )


def _check_blocks(examples: Sequence[Example], block_size: int, key: str) -> None:
    sizes = {example.trace.get("block_size") for example in examples if example.trace}
    if other := sizes - {block_size, None}:
        raise ValueError(
            f"{key} has responses that were sampled in blocks of {', '.join(map(str, other))}, and "
            f"training.block_size is {block_size}: their steps are replayed in blocks of the same size. Set it to that."
        )
