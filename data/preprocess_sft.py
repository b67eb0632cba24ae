"""Turn a file of conversations or of questions and answers into prompt/response pairs for SFT.

    python data/preprocess_sft.py data/demon_openr1math.json -o data/sft_sdar.json --family sdar
    python data/preprocess_sft.py gsm8k.json -o sft.jsonl --family dream --columns response=solution
    python data/preprocess_sft.py chats.jsonl -o sft.json --family llada

A row is a conversation if it has `messages` (role, content) or `conversations` (from, value): its last turn, which
must be the assistant's, is the response, and all before it the prompt. Otherwise it has `question` (or `prompt`) and
`response`, and the question is put as `--data-type` tasks are put in RL and evaluation. Every response ends with the
family's end of turn.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

if __package__ in (None, ""):
    ROOT = Path(__file__).resolve().parents[1]
    sys.path[:] = [str(ROOT), *(path for path in sys.path if Path(path).resolve() != ROOT / "data")]

from configs.schema import DATA_TYPES
from data.console import columns_option, warnings_as_lines
from data.faults import Fault, short, surrogate_faults, text_faults
from data.readers import Record, iter_rows
from data.tasks import Task, resolve_dataset, summary
from data.templates import chat_family, chat_formats, render_prompt
from runtime.pipes import quiet_pipes

_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_CHAT_FIELDS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_THINK = "<think>\n"


@dataclass(frozen=True)
class Format:
    """How the pairs are written: whose family, and how a question that stands alone is put."""

    family: str
    data_type: str = "math"
    template: str = "auto"
    start_with_think: bool = False


def make_pair(row: Record, how: Format, columns: Mapping[str, str]) -> dict[str, str] | Fault:
    """One row as {"prompt", "response"}, the response with the family's end of turn, or what is wrong with it."""
    fault = next(surrogate_faults(row), None)
    if fault is not None:
        return fault
    chat_field = next((name for name in _CHAT_FIELDS if name in row.values), None)
    pair = _from_chat(row, chat_field, how) if chat_field else _from_question(row, how, columns)
    if isinstance(pair, Fault):
        return pair
    prompt, response = pair
    end = chat_family(how.family).end_of_turn
    if prompt.endswith(_THINK):
        response = response.removeprefix(_THINK.strip()).removeprefix("\n")
    if response.rstrip().endswith(end):
        return {"prompt": prompt, "response": response.rstrip()}
    return {"prompt": prompt, "response": response + end}


def convert(
    source: Path, destination: Path, how: Format, columns: Mapping[str, str] | None = None
) -> tuple[int, list[Fault]]:
    """Write the pairs of `source` to `destination` (.json or .jsonl), row by row: their number and the rows left out.

    Raises ValueError for a row of another schema, or if no pair is left. The destination is replaced only at the end.
    """
    if destination.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{destination}: the pairs are written as .json or .jsonl")
    num_pairs = num_step_maps = 0
    dropped: list[Fault] = []
    with _replacing(destination) as file:
        before, between, after = ("[\n", ",\n", "\n]\n") if destination.suffix == ".json" else ("", "\n", "\n")
        for row in iter_rows(source, columns):
            pair = make_pair(row, how, columns or {})
            if isinstance(pair, Fault):
                if not pair.blank:
                    raise ValueError(f"{source}, {pair}")
                dropped.append(pair)
                continue
            file.write((between if num_pairs else before) + json.dumps(pair, ensure_ascii=False))
            num_pairs += 1
            num_step_maps += row.values.get("step_map") is not None
        if not num_pairs:
            raise ValueError(f"{source}: no usable row{': ' + summary(dropped) if dropped else ''}")
        file.write(after)
    if num_step_maps:
        warnings.warn(f"step_map of {num_step_maps} rows left out: it counts the tokens of other texts", stacklevel=2)
    return num_pairs, dropped


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 0 if the pairs were written, else 1."""
    options = _parse(arguments)
    how = Format(options.family, options.data_type, options.template, options.start_with_think)
    try:
        source = resolve_dataset(options.source, folder=Path(__file__).parent)
        with warnings_as_lines():
            num_pairs, dropped = convert(source, options.output, how, options.columns)
        first = next(iter_rows(options.output)).values
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"first prompt:\n{first['prompt']}")
    print(f"first response:\n{first['response']}")
    print(f"left out {len(dropped)} rows{': ' + summary(dropped) if dropped else ''}")
    print(f"{options.output}: {num_pairs} pairs for {options.family}")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a .json, .jsonl or .parquet file, or a name as in dataset.train_dataset")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .json or .jsonl file to write")
    parser.add_argument(
        "--family", required=True, choices=sorted(chat_formats()), help="whose template and end of turn"
    )
    parser.add_argument("--data-type", default="math", choices=DATA_TYPES, help="how questions are put (default: math)")
    parser.add_argument("--template", default="auto", help="for questions: auto, plain, or a text with {{problem}}")
    parser.add_argument("--start-with-think", action="store_true", help="the prompt opens the thought")
    parser.add_argument("--columns", type=columns_option, help="WANTED=IN_THE_FILE,... such as response=solution")
    return parser.parse_args(arguments)


def _from_question(row: Record, how: Format, columns: Mapping[str, str]) -> tuple[str, str] | Fault:
    question_field = "question" if "question" in row.values or "prompt" not in row.values else "prompt"
    for field in (question_field, "response"):
        fault = next(text_faults(row, field, columns), None)
        if fault is not None:
            return fault
    task = Task("", row.values[question_field], None, row.values)
    prompt = render_prompt(
        task,
        family=how.family,
        data_type=how.data_type,
        template=how.template,
        start_with_think=how.start_with_think,
    )
    return prompt, row.values["response"]


def _from_chat(row: Record, field: str, how: Format) -> tuple[str, str] | Fault:
    turns = row.values[field]
    if turns is None or turns == []:
        return Fault(row.place, field, "has no turn", blank=True)
    if not isinstance(turns, list):
        return Fault(row.place, field, f"is {short(turns)}, expected a list of turns")
    role_name, text_name = _CHAT_FIELDS[field]
    messages: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, 1):
        role = _ROLES.get(str(turn.get(role_name))) if isinstance(turn, dict) else None
        if role is None:
            return Fault(row.place, field, f"turn {number}: no {role_name} of {', '.join(_ROLES)} in {short(turn)}")
        if not isinstance(turn.get(text_name), str):
            return Fault(row.place, field, f"turn {number}: {text_name} is {short(turn.get(text_name))}, expected text")
        messages.append((role, turn[text_name]))
    role, response = messages.pop()
    if role != "assistant" or not response.strip():
        return Fault(row.place, field, "does not end with an answer of the assistant", blank=True)
    if not any(role == "user" for role, _ in messages):
        return Fault(row.place, field, "has no turn of the user", blank=True)
    return chat_family(how.family).conversation(messages, start_with_think=how.start_with_think), response


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            yield file
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


if __name__ == "__main__":
    quiet_pipes()
    sys.exit(main())
