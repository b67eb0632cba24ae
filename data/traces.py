"""A model's own responses as examples of fine-tuning: rows of samples.jsonl (eval.py) and rollouts.jsonl (rl.py), whose
token ids and denoising steps are taken as they are, never their text."""

import itertools
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.faults import MOST_STEPS, Fault, short
from data.readers import Record

COMPARED = "compared"
"""What the entries of an evaluation's second model begin with."""
LISTS = ("prompt_ids", "canvas_ids", "canvas_step_map", "canvas_logprobs")
COUNTS = ("num_response_tokens", "num_steps")
_UNREAD = (
    *("prompt", "completion", "answer", "columns", "token_ids", "step_map", "logprobs"),
    *("finish_reason", "weights_version", "routing"),
)
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "reward": ((int, float), "a number"),
    "task": ((str, int, float), "a text or a number"),
    "set": ((str,), "a text"),
    "entry": ((str,), "a text"),
    "events": ((dict,), "the lists of its writes"),
}
"""Fields that a row may lack, or hold null in, and what they are otherwise."""


def is_trace(row: Record) -> bool:
    """Whether a row is a response that a model sampled, with the record of how."""
    return "prompt_ids" in row.values and "canvas_ids" in row.values


def trace_of(row: Record) -> Mapping[str, Any] | Fault:
    """The record of a row, or its first fault; nulls are left out, and what no training reads. An older row may lack
    finish_reason, which is not read either."""
    if (fault := next(_faults(row), None)) is not None:
        return fault
    trace = {name: value for name, value in row.values.items() if name not in _UNREAD and value is not None}
    reason = row.values.get("finish_reason")
    return trace | {"finish_reason": reason if reason in ("stop", "length") else "length"}


def _faults(row: Record) -> Iterator[Fault]:
    """Of every field that is read later; each may rely on those before it."""
    for name in LISTS:
        kind = (int, float) if name == "canvas_logprobs" else int
        value = row.values.get(name)
        if not isinstance(value, list) or not all(isinstance(x, kind) and not isinstance(x, bool) for x in value):
            yield Fault(row.place, name, "must be a list of numbers, as eval.py and rl.py write it")
    for name in COUNTS:
        value = row.values.get(name)
        if type(value) is not int or not 0 <= value <= MOST_STEPS:
            yield Fault(row.place, name, f"must be a whole number from 0 to {MOST_STEPS}")
    lengths = {name: len(row.values[name]) for name in LISTS[1:] if isinstance(row.values.get(name), list)}
    if len(set(lengths.values())) > 1 or max(lengths.values(), default=0) < row.values["num_response_tokens"]:
        yield Fault(row.place, "canvas_ids", f"and what goes with it differ in length: {lengths}")
    yield from _faults_of_optional(row)
    if row.values.get("images"):
        yield Fault(row.place, "images", "has pictures, which a row of responses does not hold", blank=True)
    if not row.values["num_response_tokens"]:
        yield Fault(row.place, "num_response_tokens", "is 0: an empty response", blank=True)
    yield from _faults_of_range(row)


def _faults_of_optional(row: Record) -> Iterator[Fault]:
    """Of fields that older rows, and those of other programs, may lack."""
    for name, (kinds, words) in _KINDS.items():
        if (value := row.values.get(name)) is not None and not isinstance(value, kinds):
            yield Fault(row.place, name, f"is {short(value)}, expected {words} or null")
    size = row.values.get("block_size")
    if size is not None and (type(size) is not int or size < 1):
        yield Fault(row.place, "block_size", f"is {short(size)}, expected a whole number from 1, or null")
    suffix = row.values.get("suffix_ids")
    if suffix is not None and not (isinstance(suffix, list) and all(type(x) is int and x >= 0 for x in suffix)):
        yield Fault(row.place, "suffix_ids", "must be a list of whole numbers, 0 or more")


def _faults_of_range(row: Record) -> Iterator[Fault]:
    for name in ("prompt_ids", "canvas_ids"):
        if (least := min(row.values[name], default=0)) < 0:
            yield Fault(row.place, name, f"holds {least}: token ids are whole numbers, 0 or more")
    steps, most = row.values["canvas_step_map"], row.values["num_steps"] + 1
    if wrong := [step for step in (min(steps), max(steps)) if not 0 <= step <= most]:
        yield Fault(row.place, "canvas_step_map", f"holds {wrong[0]}: steps are from 0 to num_steps + 1, here {most}")
    if not any(0 < step < most for step in steps[: row.values["num_response_tokens"]]):
        reason = "has no token of the response that a step decided (0 = still masked)"
        yield Fault(row.place, "canvas_step_map", reason, blank=True)


def speed_of(trace: Mapping[str, Any]) -> float:
    """Tokens a denoising step."""
    return float(trace["num_response_tokens"] / max(1, trace["num_steps"]))


def is_graded(trace: Mapping[str, Any]) -> bool:
    """Whether its reward is a number; None is one that a reward left out."""
    reward = trace.get("reward")
    return isinstance(reward, int | float) and math.isfinite(reward)


def is_right(trace: Mapping[str, Any]) -> bool:
    """As accuracy counts: a reward of 1 at least."""
    return is_graded(trace) and trace["reward"] >= 1.0


def is_compared(trace: Mapping[str, Any]) -> bool:
    """Whether it is of the model that an evaluation compared with."""
    return str(trace.get("entry", "")).startswith(f"{COMPARED}/")


def task_of(trace: Mapping[str, Any]) -> tuple[str, Hashable]:
    """(set, task) of a response; where it names no task its prompt is one. Ids of tasks are those of their set. Files
    of eval.py that name no set have it in the name of the entry, before that of the decoding."""
    label, task = trace.get("set") or str(trace.get("entry", "")).rpartition("/")[0], trace.get("task")
    return str(label), tuple(trace["prompt_ids"]) if task is None else str(task)


@dataclass(frozen=True)
class Paired:
    """pairs: (right, wrong), as places in the list of responses. ungraded: responses without a number as reward."""

    pairs: list[tuple[int, int]]
    ungraded: int


def first_of(tasks: Iterable[Hashable], most: int) -> set[Hashable]:
    """The first `most` different tasks (0: all)."""
    return {*[*dict.fromkeys(tasks)][: most or None]}


def paired(traces: Sequence[Mapping[str, Any]], count: int | None, most_tasks: int = 0) -> Paired:
    """At most `count` pairs (None: all) of each prompt of a task: its first right response with its first wrong one,
    then the second ones, in the order given; of the first `most_tasks` tasks (0: all). A response without a number as
    its reward is neither."""
    of_task: dict[Hashable, tuple[list[int], list[int]]] = {}
    used, ungraded = first_of(map(task_of, traces), most_tasks), 0
    for i, trace in enumerate(traces):
        if task_of(trace) not in used:
            continue
        if not is_graded(trace):
            ungraded += 1
            continue
        sides = of_task.setdefault((*task_of(trace), tuple(trace["prompt_ids"])), ([], []))
        sides[0 if is_right(trace) else 1].append(i)
    pairs = [pair for sides in of_task.values() for pair in itertools.islice(zip(*sides, strict=False), count)]
    return Paired(pairs, ungraded)


def no_pairs(traces: Sequence[Mapping[str, Any]]) -> str:
    """Why these responses give no pair."""
    return no_grades(traces) or (
        f"no task of its {len(traces)} responses has both a right one (a reward of 1 or more) and a wrong one, which "
        "are a pair: sample more responses a task, or other tasks."
    )


def no_grades(traces: Sequence[Mapping[str, Any]]) -> str:
    """That none of these responses has a reward; "" where one has."""
    if any(map(is_graded, traces)):
        return ""
    return (
        f"none of the {len(traces)} responses has a number as its reward, which says what is right: sample them by "
        "eval.py with a reward (reward.function)."
    )
