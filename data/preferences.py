"""Pairs of a chosen and a rejected response to one prompt: rows with `prompt`, `chosen` and `rejected`, texts or lists
of turns (TRL's preference format)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data.conversations import SYSTEM_FIELDS, answered, system_of, turns_of
from data.faults import Fault, missing, surrogate_faults, text_faults
from data.pictures import CODES
from data.pictures import FIELDS as PICTURES
from data.readers import Record, iter_rows
from data.tasks import Example, Turns, seeing, usable_rows, warn_of_dropped, warn_of_unused
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
    `data.tasks.load_tasks`: a row without a field is an error, one with an empty response or two equal ones is left
    out, white space at the end aside. A warning counts the columns that no pair shows."""
    unused: Counter[str] = Counter()
    scanned = scan_pairs(path, columns=columns, unused=unused, image_root=image_root)
    found, dropped = usable_rows(Path(path), scanned)
    warn_of_dropped(Path(path), len(found), dropped)
    warn_of_unused(Path(path), unused, "columns that DPO does not use")
    pairs = [item for item in found if isinstance(item, Pair)]
    traces = [item for item in found if isinstance(item, Example)]
    if pairs and traces:
        raise ValueError(f"{path}: {len(pairs)} rows are pairs and {len(traces)} responses of a model: give two files.")
    return pairs or traces


def scan_pairs(
    path: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    unused: Counter[str] | None = None,
    image_root: Path | None = None,
) -> Iterator[Pair | Example | Fault]:
    """Every row of the file in order, as a pair, as a model's response, or as its fault. unused: counts the columns of
    pairs that hold something and that no pair shows."""
    for row in iter_rows(Path(path), columns):
        if is_trace(row):
            trace = trace_of(row)
            yield trace if isinstance(trace, Fault) else Example("", "", None, trace=trace)
            continue
        pair = _pair(row, columns or {})
        if unused is not None and isinstance(pair, Pair):
            shown = {name.split(".")[0] for name in (columns or {}).values()}
            shown |= set() if image_root is None else {*PICTURES, CODES}
            unused.update(name for name in _unused(row, pair) if name not in shown)
        yield pair if image_root is None or isinstance(pair, Fault) else _with_pictures(pair, row, image_root)


def _unused(row: Record, pair: Pair) -> list[str]:
    """The columns that hold something and have no place in the pair: a system prompt beside a text or another one, a
    prompt that is a text and no turn of whole conversations."""
    prompt, turns, system = row.values.get("prompt"), pair.chosen.turns, system_of(row)
    used = {*FIELDS}
    if isinstance(prompt, list) or prompt == pair.chosen.prompt or ("user", prompt) in turns:
        used.add("prompt")
    if ("system", system) in turns[:1]:
        used |= {*SYSTEM_FIELDS}
    return [name for name, value in row.values.items() if value not in (None, "", []) and name not in used]


def _with_pictures(pair: Pair, row: Record, root: Path) -> Pair | Fault:
    chosen, rejected = seeing(pair.chosen, row, root), seeing(pair.rejected, row, root)
    if isinstance(chosen, Fault) or isinstance(rejected, Fault):
        return chosen if isinstance(chosen, Fault) else rejected  # type: ignore[return-value]
    return Pair(chosen, rejected)


def _pair(row: Record, columns: Mapping[str, str]) -> Pair | Fault:
    for name in FIELDS:
        if name not in row.values:
            return missing(row, name, columns)
    for name in FIELDS:
        if row.values[name] in (None, []):
            return Fault(row.place, name, "is null" if row.values[name] is None else "is empty", blank=True)
    is_chat = [isinstance(row.values[name], list) for name in FIELDS]
    if any(is_chat) and not all(is_chat):
        return Fault(row.place, "rejected", "and 'chosen' must both be texts, or both lists of turns")
    pair = _of_turns(row) if all(is_chat) else _of_texts(row, columns)
    if isinstance(pair, Fault):
        return pair
    if pair.chosen == pair.rejected:
        return Fault(row.place, "rejected", "is the same as 'chosen'", blank=True)
    if pair.chosen.response.rstrip() == pair.rejected.response.rstrip():
        return Fault(row.place, "rejected", "differs from 'chosen' in white space at its end alone", blank=True)
    return next(surrogate_faults(row), None) or pair


def _of_texts(row: Record, columns: Mapping[str, str]) -> Pair | Fault:
    for name in FIELDS:
        if (fault := next(text_faults(row, name, columns), None)) is not None:
            return fault
    if isinstance(row.values.get("prompt"), list):
        turns = _prompt_turns(row)
        return turns if isinstance(turns, Fault) else _with_prompt(row, "", _after_system(row, turns))
    fault = next(text_faults(row, "prompt", columns), None)
    return fault or _with_prompt(row, row.values["prompt"], ())


def _with_prompt(row: Record, prompt: str, turns: Turns | Fault) -> Pair | Fault:
    if isinstance(turns, Fault):
        return turns
    chosen, rejected = (Example(prompt, row.values[name], None, turns) for name in FIELDS)
    return Pair(chosen, rejected)


def _of_turns(row: Record) -> Pair | Fault:
    """Both responses as turns: whole conversations, or what comes after `prompt`. They may differ in the last turn
    alone, the assistant's."""
    before: Turns | None = None
    responses: list[str] = []
    for name in FIELDS:
        split = answered(row, name)
        if isinstance(split, Fault):
            return split
        turns, response = split
        if before is not None and tuple(turns) != before:
            return Fault(row.place, name, "differs from 'chosen' before its last turn", blank=True)
        before = tuple(turns)
        responses.append(response)
    prompt = _whole_prompt(row, before or ())
    if isinstance(prompt, Fault):
        return prompt
    if prompt[-1][0] != "user":
        return Fault(row.place, "chosen", "has no turn of the user before its response", blank=True)
    prompt_turns = _after_system(row, prompt)
    if isinstance(prompt_turns, Fault):
        return prompt_turns
    chosen, rejected = (Example("", response, None, prompt_turns) for response in responses)
    return Pair(chosen, rejected)


def _whole_prompt(row: Record, before: Turns) -> Turns | Fault:
    """The turns before the responses: those in both of them, where these begin with the user's (maybe after a system
    prompt), else after those of `prompt`."""
    said = _without_system(before)
    if said and said[0][0] == "user":
        return _with_system_of_prompt(row, before)
    if "prompt" not in row.values:
        return Fault(row.place, "chosen", "has no turn of the user, and the row no 'prompt'")
    turns = _prompt_turns(row)
    if isinstance(turns, Fault):
        return turns
    if any(role == "system" for role, _ in before):
        return Fault(row.place, "chosen", "has a system turn after 'prompt'", blank=True)
    return (*turns, *before)


def _with_system_of_prompt(row: Record, whole: Turns) -> Turns | Fault:
    """Whole conversations, after the system prompt of a `prompt` in turns, which they must begin with; a `prompt` that
    is a text says nothing that they do not."""
    if not isinstance(row.values.get("prompt"), list) or not row.values["prompt"]:
        return whole
    turns = turns_of(row, "prompt")
    if isinstance(turns, Fault):
        return turns
    asked, system = _without_system(tuple(turns)), tuple(turns[:1]) if turns[0][0] == "system" else ()
    own_system, said = whole[: len(whole) - len(_without_system(whole))], _without_system(whole)
    if said[: len(asked)] != asked or (system and own_system and system != own_system):
        return Fault(row.place, "chosen", "begins with a turn of the user, but not with those of 'prompt'", blank=True)
    return (*(own_system or system), *said)


def _without_system(turns: Turns) -> Turns:
    """The turns after a system prompt that they begin with."""
    return turns[1:] if turns and turns[0][0] == "system" else turns


def _prompt_turns(row: Record) -> Turns | Fault:
    """`prompt` as turns; a text is the user's."""
    if not isinstance(row.values["prompt"], list):
        fault = next(text_faults(row, "prompt", {}), None)
        return fault or (("user", row.values["prompt"]),)
    turns = turns_of(row, "prompt")
    if isinstance(turns, Fault):
        return turns
    if turns[-1][0] != "user" or not turns[-1][1].strip():
        return Fault(row.place, "prompt", "does not end with a turn of the user", blank=True)
    return tuple(turns)


def _after_system(row: Record, turns: Turns) -> Turns | Fault:
    """The turns, after the system prompt that the row has in a column of its own."""
    system = system_of(row)
    if isinstance(system, Fault):
        return system
    return (("system", system), *turns) if system is not None and turns[0][0] != "system" else turns
