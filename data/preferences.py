"""Pairs of a chosen and a rejected response to one prompt: rows with `prompt`, `chosen` and `rejected`, texts or lists
of turns (TRL's preference format)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.conversations import system_of, turns_of
from data.faults import Fault, missing, surrogate_faults, text_faults
from data.readers import Record, iter_rows
from data.tasks import Example, Turns, seeing, usable_rows, warn_of_dropped
from data.traces import is_trace, trace_of

FIELDS = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """Two examples with one prompt."""

    chosen: Example
    rejected: Example


def load_pairs(
    path: Path | str, *, columns: Mapping[str, str] | None = None, image_root: Path | None = None
) -> list[Pair] | list[Example]:
    """The pairs of a file; of a file with a model's responses (`data.traces`) these, unpaired. Drops and errors as in
    `data.tasks.load_tasks`: a row without a field is an error, one with an empty answer or two equal ones is left
    out."""
    found, dropped = usable_rows(Path(path), scan_pairs(path, columns=columns, image_root=image_root))
    warn_of_dropped(Path(path), len(found), dropped)
    pairs = [item for item in found if isinstance(item, Pair)]
    traces = [item for item in found if isinstance(item, Example)]
    if pairs and traces:
        raise ValueError(f"{path}: {len(pairs)} rows are pairs and {len(traces)} responses of a model: give two files.")
    return pairs or traces


def scan_pairs(
    path: Path | str, *, columns: Mapping[str, str] | None = None, image_root: Path | None = None
) -> Iterator[Pair | Example | Fault]:
    """Every row of the file in order, as a pair, as a model's response, or as its fault."""
    for row in iter_rows(Path(path), columns):
        if is_trace(row):
            trace = trace_of(row)
            yield trace if isinstance(trace, Fault) else Example("", "", None, trace=trace)
            continue
        pair = _pair(row, columns or {})
        yield pair if image_root is None or isinstance(pair, Fault) else _with_pictures(pair, row, image_root)


def _with_pictures(pair: Pair, row: Record, root: Path) -> Pair | Fault:
    chosen, rejected = seeing(pair.chosen, row, root), seeing(pair.rejected, row, root)
    if isinstance(chosen, Fault) or isinstance(rejected, Fault):
        return chosen if isinstance(chosen, Fault) else rejected  # type: ignore[return-value]
    return Pair(chosen, rejected)


def _pair(row: Record, columns: Mapping[str, str]) -> Pair | Fault:
    absent = next((missing(row, name, columns) for name in FIELDS if name not in row.values), None)
    if absent is not None:
        return absent
    is_chat = [isinstance(row.values[name], list) for name in FIELDS]
    if any(is_chat) and not all(is_chat):
        return Fault(row.place, "rejected", "and 'chosen' must both be texts, or both lists of turns")
    pair = _of_turns(row) if all(is_chat) else _of_texts(row, columns)
    if isinstance(pair, Fault):
        return pair
    if pair.chosen == pair.rejected:
        return Fault(row.place, "rejected", "is the same as 'chosen'", blank=True)
    return next(surrogate_faults(row), None) or pair


def _of_texts(row: Record, columns: Mapping[str, str]) -> Pair | Fault:
    for name in FIELDS:
        if (fault := next(text_faults(row, name, columns), None)) is not None:
            return fault
    if isinstance(row.values.get("prompt"), list):
        turns = _prompt_turns(row)
        return turns if isinstance(turns, Fault) else _with_prompt(row, "", turns)
    fault = next(text_faults(row, "prompt", columns), None)
    return fault or _with_prompt(row, row.values["prompt"], ())


def _with_prompt(row: Record, prompt: str, turns: Turns) -> Pair:
    chosen, rejected = (Example(prompt, row.values[name], None, turns) for name in FIELDS)
    return Pair(chosen, rejected)


def _of_turns(row: Record) -> Pair | Fault:
    """Both answers as turns: whole conversations, or what comes after `prompt`. They may differ in the last turn
    alone, the assistant's."""
    before: Turns | None = None
    answers: list[str] = []
    for name in FIELDS:
        turns = turns_of(row, name)
        if isinstance(turns, Fault):
            return turns
        role, answer = turns.pop()
        if role != "assistant" or not answer.strip():
            return Fault(row.place, name, "does not end with a response of the assistant", blank=True)
        if before is not None and tuple(turns) != before:
            return Fault(row.place, name, "differs from 'chosen' before its last turn", blank=True)
        before = tuple(turns)
        answers.append(answer)
    prompt = _whole_prompt(row, before or ())
    if isinstance(prompt, Fault):
        return prompt
    chosen, rejected = (Example("", answer, None, prompt) for answer in answers)
    return Pair(chosen, rejected)


def _whole_prompt(row: Record, before: Turns) -> Turns | Fault:
    """The turns before the answers: those in both of them, where these begin with the user's (or a system prompt),
    else after those of `prompt`."""
    if any(role == "user" for role, _ in before):
        return _after_system(row, before)
    if "prompt" not in row.values:
        return Fault(row.place, "chosen", "has no turn of the user, and the row no 'prompt'")
    turns = _prompt_turns(row)
    return turns if isinstance(turns, Fault) else (*turns, *before)


def _prompt_turns(row: Record) -> Turns | Fault:
    """`prompt` as turns; a text is the user's."""
    if not isinstance(row.values["prompt"], list):
        fault = next(text_faults(row, "prompt", {}), None)
        return fault or _after_system(row, (("user", row.values["prompt"]),))
    turns = turns_of(row, "prompt")
    if isinstance(turns, Fault):
        return turns
    if not any(role == "user" for role, _ in turns):
        return Fault(row.place, "prompt", "has no turn of the user", blank=True)
    return _after_system(row, tuple(turns))


def _after_system(row: Record, turns: Turns) -> Turns | Fault:
    """The turns, after the system prompt that the row has in a column of its own."""
    system = system_of(row)
    if isinstance(system, Fault):
        return system
    return (("system", system), *turns) if system is not None and turns[0][0] != "system" else turns
