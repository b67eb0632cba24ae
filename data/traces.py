"""A model's own responses as examples of fine-tuning: rows of samples.jsonl (eval.py) and rollouts.jsonl (rl.py), whose
token ids and denoising steps are taken as they are, never their text."""

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.faults import Fault
from data.readers import Record

COMPARED = "compared"
"""What the entries of an evaluation's second model begin with."""
LISTS = ("prompt_ids", "canvas_ids", "canvas_step_map", "canvas_logprobs")
COUNTS = ("num_response_tokens", "num_steps")
_TEXTS = ("prompt", "completion", "answer", "columns", "token_ids", "step_map", "logprobs")


def is_trace(row: Record) -> bool:
    """Whether a row is a response that a model sampled, with the record of how."""
    return "prompt_ids" in row.values and "canvas_ids" in row.values


def trace_of(row: Record) -> Mapping[str, Any] | Fault:
    """The record of a row, its texts left out, or its first fault."""
    fault = next(_faults(row), None)
    return fault or {name: value for name, value in row.values.items() if name not in _TEXTS}


def _faults(row: Record) -> Iterator[Fault]:
    for name in LISTS:
        kind = (int, float) if name == "canvas_logprobs" else int
        value = row.values.get(name)
        if not isinstance(value, list) or not all(isinstance(x, kind) and not isinstance(x, bool) for x in value):
            yield Fault(row.place, name, "must be a list of numbers, as eval.py and rl.py write it")
    for name in COUNTS:
        if type(row.values.get(name)) is not int or row.values[name] < 0:
            yield Fault(row.place, name, "must be a whole number, 0 or more")
    lengths = {name: len(row.values[name]) for name in LISTS[1:] if isinstance(row.values.get(name), list)}
    if len(set(lengths.values())) > 1 or max(lengths.values(), default=0) < row.values["num_response_tokens"]:
        yield Fault(row.place, "canvas_ids", f"and what goes with it differ in length: {lengths}")
    if row.values.get("images"):
        yield Fault(row.place, "images", "has pictures, which a row of responses does not hold", blank=True)
    if not row.values["num_response_tokens"]:
        yield Fault(row.place, "num_response_tokens", "is 0: an empty response", blank=True)


def speed_of(trace: Mapping[str, Any]) -> float:
    """Tokens a denoising step."""
    return float(trace["num_response_tokens"] / max(1, trace["num_steps"]))


def is_graded(trace: Mapping[str, Any]) -> bool:
    """Whether its reward is a number; None is one that a reward left out."""
    reward = trace.get("reward")
    return isinstance(reward, int | float) and math.isfinite(reward)


def is_right(trace: Mapping[str, Any]) -> bool:
    """As accuracy counts: a reward of 1 at least."""
    reward = trace.get("reward")
    return isinstance(reward, int | float) and reward >= 1.0


def is_compared(trace: Mapping[str, Any]) -> bool:
    """Whether it is of the model that an evaluation compared with."""
    return str(trace.get("entry", "")).startswith(f"{COMPARED}/")


def task_of(trace: Mapping[str, Any]) -> tuple[str, str]:
    """(set, task) of a response. Ids of tasks are those of their set. Files of eval.py that name no set have it in the
    name of the entry, before that of the decoding."""
    label = trace.get("set") or str(trace.get("entry", "")).rpartition("/")[0]
    return str(label), str(trace.get("task"))


@dataclass(frozen=True)
class Paired:
    """pairs: (right, wrong), as places in the list of responses. ungraded: responses without a number as reward."""

    pairs: list[tuple[int, int]]
    ungraded: int


def paired(traces: Sequence[Mapping[str, Any]], count: int | None, most_tasks: int = 0) -> Paired:
    """At most `count` pairs (None: all) of each prompt of a task: its first right response with its first wrong one,
    then the second ones, in the order given; of the first `most_tasks` tasks (0: all). A response without a number as
    its reward is neither."""
    of_task: dict[Hashable, tuple[list[int], list[int]]] = {}
    used, ungraded = {*[*dict.fromkeys(map(task_of, traces))][: most_tasks or None]}, 0
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


def no_pairs(responses: int) -> str:
    """Why so many responses give no pair."""
    return (
        f"no task of its {responses} responses has both a right one (a reward of 1 or more) and a wrong one, which are "
        "a pair: sample more responses a task, or other tasks."
    )
