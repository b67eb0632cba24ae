"""What can be wrong with one row, by field."""

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from configs.schema import DATA_TYPES
from data.readers import Record

MOST_STEPS = 2**31 - 1
"""Of a response: so that products of steps and blocks stay whole numbers of 64 bits."""
_LETTER = re.compile(
    r"\W*(?:\\?(?:text|textbf|mathrm|mathbf|boxed)\W+)*(?:(?:option|answer|choice)\W+|选项|答案\W*)?"
    r"[A-Za-zＡ-Ｚ](?![A-Za-z0-9])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row. Where `blank`, a value is absent or cannot be used, and only this row is left out;
    anything else means that the file has another schema than it was read with."""

    place: str
    field: str
    reason: str
    blank: bool = False

    def __str__(self) -> str:
        return f"{self.place}: field {self.field!r} {self.reason}"


def check_data_type(data_type: str) -> None:
    """ValueError unless it is a type of task."""
    if data_type not in DATA_TYPES:
        near = difflib.get_close_matches(str(data_type), DATA_TYPES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown data_type {data_type!r}: use one of {', '.join(DATA_TYPES)}{hint}")


def task_fault(row: Record, data_type: str, columns: Mapping[str, str]) -> Fault | None:
    """The first fault of a task's row, or None."""
    return next(_task_faults(row, data_type, columns), None)


def example_fault(row: Record, columns: Mapping[str, str]) -> Fault | None:
    """The first fault of an SFT pair's row, or None."""
    return next(_example_faults(row, columns), None)


def _task_faults(row: Record, data_type: str, columns: Mapping[str, str]) -> Iterator[Fault]:
    yield from text_faults(row, "question", columns)
    if data_type == "mmu" and caption_flag(row.values) is None:
        yield Fault(row.place, "is_caption", f"is {short(row.values['is_caption'])}, expected true, false, 1 or 0")
    if data_type in ("math", "option") or (data_type == "mmu" and not caption_flag(row.values)):
        yield from text_faults(row, "ground_truth_answer", columns, numbers=True)
        if data_type == "option":
            yield from _letter_faults(row)
    elif data_type == "code":
        yield from _code_faults(row, columns)
    yield from surrogate_faults(row)


def caption_flag(values: Mapping[str, Any]) -> bool | None:
    """Whether a row asks for a caption (`is_caption`, of a CSV file as text); None where it says neither yes nor no."""
    given = values.get("is_caption")
    if isinstance(given, str):
        return {"true": True, "1": True, "false": False, "0": False, "": False}.get(given.strip().lower())
    if given is None or isinstance(given, bool | int | float) and given in (0, 1):
        return bool(given)
    return None


def _example_faults(row: Record, columns: Mapping[str, str]) -> Iterator[Fault]:
    yield from text_faults(row, "prompt", columns)
    yield from text_faults(row, "response", columns)
    yield from _step_faults(row)
    yield from surrogate_faults(row)


def steps_fault(row: Record) -> Fault | None:
    """The first fault of a row's step_map, or of its texts as such."""
    return next(itertools.chain(_step_faults(row), surrogate_faults(row)), None)


def _step_faults(row: Record) -> Iterator[Fault]:
    steps = row.values.get("step_map")
    if steps is None:
        return
    if not (isinstance(steps, list) and all(type(step) is int and step >= 0 for step in steps)):
        yield Fault(row.place, "step_map", "must be a list of whole numbers, 0 or more")
    elif max(steps, default=0) > MOST_STEPS:
        yield Fault(row.place, "step_map", f"holds {max(steps)}: steps are {MOST_STEPS} at most")


def _code_faults(row: Record, columns: Mapping[str, str]) -> Iterator[Fault]:
    method = row.values.get("test_method")
    if "test_method" not in row.values:
        yield missing(row, "test_method", columns)
    elif method not in ("function", "stdio"):
        yield Fault(row.place, "test_method", f"is {short(method)}, expected 'function' or 'stdio'")
    elif method == "function":
        yield from _list_faults(row, "test_list", columns)
        prefix = row.values.get("prefix")
        if prefix is not None and not isinstance(prefix, str):
            yield Fault(row.place, "prefix", f"is {short(prefix)}, expected text")
    else:
        yield from _list_faults(row, "test_input", columns)
        yield from _list_faults(row, "test_output", columns)
        inputs, outputs = len(row.values["test_input"]), len(row.values["test_output"])
        if inputs != outputs:
            yield Fault(row.place, "test_output", f"has {outputs} entries for {inputs} of test_input", blank=True)
    limit = row.values.get("test_time_limit")
    if limit is not None and not (isinstance(limit, int | float) and not isinstance(limit, bool) and limit > 0):
        yield Fault(row.place, "test_time_limit", f"is {short(limit)}, expected seconds above 0")


def _letter_faults(row: Record) -> Iterator[Fault]:
    """Faults of an option's key: it is a letter (A, (b), C. Paris), not the index of an option or its text."""
    key = row.values["ground_truth_answer"]
    if not isinstance(key, str) or key.strip().isdigit():
        hint = "expected a letter (A, B, ...): write the index 0 as A, 1 as B"
        yield Fault(row.place, "ground_truth_answer", f"is {short(key)}, {hint}")
    elif not _LETTER.match(key):
        yield Fault(row.place, "ground_truth_answer", "does not begin with the letter of an option", blank=True)


def _list_faults(row: Record, field: str, columns: Mapping[str, str]) -> Iterator[Fault]:
    value = row.values.get(field)
    if field not in row.values:
        yield missing(row, field, columns)
    elif value is None or value == []:
        yield Fault(row.place, field, "is null" if value is None else "is an empty list", blank=True)
    elif not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
        yield Fault(row.place, field, f"is {short(value)}, expected a list of texts")


def text_faults(row: Record, field: str, columns: Mapping[str, str], *, numbers: bool = False) -> Iterator[Fault]:
    """Faults of a field that must hold text that is not blank, or with `numbers` a number."""
    value = row.values.get(field)
    if field not in row.values:
        yield missing(row, field, columns)
    elif value is None or value != value:
        yield Fault(row.place, field, "is null" if value is None else "is NaN", blank=True)
    elif numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return
    elif not isinstance(value, str):
        yield Fault(row.place, field, f"is {short(value)}, expected text")
    elif not value.strip():
        yield Fault(row.place, field, "is empty", blank=True)


def surrogate_faults(row: Record) -> Iterator[Fault]:
    """A fault for each field that holds half of a UTF-16 pair, which no tokenizer and no file can take."""
    for field, value in row.values.items():
        if _has_lone_surrogate(value) or _has_lone_surrogate(field):
            yield Fault(row.place, field, "holds a lone surrogate, which is not text", blank=True)


def missing(row: Record, field: str, columns: Mapping[str, str]) -> Fault:
    """The fault of a field that the row does not have, with what it has and a name that is near."""
    wanted = columns.get(field, field)
    names = list(row.values) if row.renamed_from is None else list(row.renamed_from)
    near = difflib.get_close_matches(wanted, names, 1)
    mapped = f" (read from column {wanted!r})" if field in columns else ""
    hint = f"dataset.columns can name the one meant, as in {{{field}: {near[0] if near else 'its_name'}}}"
    present = ", ".join(names) or "none"
    return Fault(row.place, field, f"is missing{mapped}; the row has {present}; {hint}")


def short(value: Any) -> str:
    """A value as it can stand in a message: its type and its beginning."""
    text = ascii(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def _has_lone_surrogate(value: Any) -> bool:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
                return True
        elif isinstance(value, dict):
            pending.extend((*value.keys(), *value.values()))
        elif isinstance(value, list):
            pending.extend(value)
    return False
