"""Few-shot examples: a question and its answer, which stand before another question as turns."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.faults import text_faults
from data.readers import Record, iter_rows

_NAMES = {"question": ("question", "prompt"), "answer": ("answer", "response", "solution", "ground_truth_answer")}


def load_shots(given: Path | Mapping[str, Any], columns: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """(question, answer) of each row of a data file, or of one such mapping. ValueError for a row without either, or
    whose values are not text."""
    if isinstance(given, Path):
        return [_shot(row, f"{given}, ") for row in iter_rows(given, columns)]
    return [_shot(Record(1, "an example", dict(given)), "")]


def _shot(row: Record, file: str) -> tuple[str, str]:
    texts = []
    for wanted, names in _NAMES.items():
        name = next((name for name in names if name in row.values), wanted)
        if fault := next(_faults(row, name), None):
            raise ValueError(f"{file}{fault}")
        texts.append(str(row.values[name]))
    return texts[0], texts[1]


def _faults(row: Record, name: str) -> Iterator[Any]:
    return text_faults(row, name, {}, numbers=name not in _NAMES["question"])
