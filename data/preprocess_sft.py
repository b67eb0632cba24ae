"""Turns a file of conversations or of questions and answers into prompt/response pairs for SFT.

    python data/preprocess_sft.py data/demon_openr1math.json -o data/sft_sdar.json --family sdar
    python data/preprocess_sft.py gsm8k.json -o sft.jsonl --family dream --columns response=solution
    python data/preprocess_sft.py chats.jsonl -o sft.json --family llada
    python data/preprocess_sft.py chats.jsonl -o sft.json --tokenizer path/to/SDAR-4B-Chat --template chat

A row is a conversation if it has `messages` (role, content) or `conversations` (from, value): its last turn, which
must be the assistant's, is the response, and all before it the prompt. Otherwise it has `question` (or `prompt`) and
`response`, and the question becomes a prompt as `--data-type` tasks do in RL and evaluation. A `system` column comes
first in either. Every response ends with the family's end of turn. Columns that are not used are named.
"""

import argparse
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from configs.schema import DATA_TYPES
from data.console import chat_name, columns_option, load_tokenizer, warnings_as_lines
from data.control import spaced
from data.conversations import SYSTEM_FIELDS, chat_field, conversation_of, system_of, unused_columns
from data.faults import Fault, surrogate_faults, text_faults
from data.readers import Record, iter_rows
from data.tasks import Task, resolve_dataset, summary
from data.templates import Format, Writer, chat_family, chat_formats
from runtime.pipes import quiet_pipes
from runtime.text import print_error, print_text

_THINK = "<think>\n"
_TASK_COLUMNS = ("prefix", "test_method")


def make_pair(row: Record, writer: Writer, columns: Mapping[str, str]) -> dict[str, str] | Fault:
    """One row as {"prompt", "response"}, guarded, the response with the family's end of turn; or its fault."""
    fault = next(surrogate_faults(row), None)
    if fault is not None:
        return fault
    chat = chat_field(row)
    pair = _from_chat(row, chat, writer) if chat else _from_question(row, writer, columns)
    if isinstance(pair, Fault):
        return pair
    prompt, response = pair
    end = chat_family(writer.how.family).end_of_turn
    if prompt.endswith(_THINK):
        response = response.removeprefix(_THINK.strip()).removeprefix("\n")
    if response.rstrip().endswith(end):
        return {"prompt": prompt, "response": writer.control.guard_response(response.rstrip(), end)}
    return {"prompt": prompt, "response": writer.control.guard_response(response) + end}


def convert(
    source: Path, destination: Path, writer: Writer, columns: Mapping[str, str] | None = None
) -> tuple[int, list[Fault]]:
    """Writes the pairs of `source` to `destination` (.json or .jsonl), row by row: their number and the rows left out.

    Warns of what the pairs do not show of their rows. ValueError for a row of another schema, or if no pair is
    left. The destination is replaced only at the end.
    """
    if destination.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{destination}: the pairs are written as .json or .jsonl")
    num_pairs = num_spaced = 0
    dropped: list[Fault] = []
    unused: Counter[str] = Counter()
    with _replacing(destination) as file:
        before, between, after = ("[\n", ",\n", "\n]\n") if destination.suffix == ".json" else ("", "\n", "\n")
        for row in iter_rows(source, columns):
            pair = make_pair(row, writer, columns or {})
            if isinstance(pair, Fault):
                if not pair.blank:
                    raise ValueError(f"{source}, {pair}")
                dropped.append(pair)
                continue
            texts = {name: spaced(text) for name, text in pair.items()}
            file.write((between if num_pairs else before) + json.dumps(texts, ensure_ascii=False))
            num_pairs += 1
            num_spaced += texts != pair
            unused.update(_unused(row, writer.how, columns or {}))
        if not num_pairs:
            raise ValueError(f"{source}: no usable row{': ' + summary(dropped) if dropped else ''}")
        file.write(after)
    _warn(unused, num_spaced)
    return num_pairs, dropped


def _warn(unused: Counter[str], num_spaced: int) -> None:
    if num_step_maps := unused.pop("step_map", 0):
        warnings.warn(f"step_map of {num_step_maps} rows left out: it counts the tokens of other texts", stacklevel=3)
    if unused:
        counted = ", ".join(f"{name} ({count} rows)" for name, count in unused.most_common())
        warnings.warn(f"columns that the pairs do not show: {counted}", stacklevel=3)
    if num_spaced:
        warnings.warn(
            f"{num_spaced} rows hold control tokens in their texts: each got a space inside and stays text",
            stacklevel=3,
        )


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 0 if the pairs were written, else 1."""
    options = _parse(arguments)
    try:
        with warnings_as_lines():
            writer = _writer_of(options)
            source = resolve_dataset(options.source, folder=Path(__file__).parent)
            num_pairs, dropped = convert(source, options.output, writer, options.columns)
        first = next(iter_rows(options.output)).values
    except (ValueError, OSError) as error:
        print_error(str(error))
        return 1
    print_text(f"first prompt:\n{first['prompt']}")
    print_text(f"first response:\n{first['response']}")
    print_text(f"left out {len(dropped)} rows{': ' + summary(dropped) if dropped else ''}")
    print_text(f"{options.output}: {num_pairs} pairs for {writer.how.family}")
    return 0


def _unused(row: Record, how: Format, columns: Mapping[str, str]) -> list[str]:
    """The columns of a row that hold something and that its pair does not show."""
    if (chat := chat_field(row)) is not None:
        return [name for name in unused_columns(row, chat) if name not in columns.values()]
    used = {"question" if "question" in row.values else "prompt", "response", *_TASK_COLUMNS, *columns.values()}
    used.update(SYSTEM_FIELDS if how.template in ("auto", "chat") else ())
    return [name for name, value in row.values.items() if value not in (None, "", []) and name not in used]


def _writer_of(options: argparse.Namespace) -> Writer:
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    family = options.family or chat_name(options.tokenizer)
    if family is None:
        raise ValueError(
            "whose turns to write is not known: give --family, or a --tokenizer whose config.json names it"
        )
    if options.template == "chat" and tokenizer is None:
        raise ValueError("--template chat is the tokenizer's chat template: give --tokenizer DIR")
    return Writer(Format(family, options.data_type, options.template, options.start_with_think), tokenizer)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a .json, .jsonl or .parquet file, or a name as in dataset.train_dataset")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .json or .jsonl file to write")
    parser.add_argument(
        "--family", choices=sorted(chat_formats()), help="whose template and end of turn (default: the tokenizer's)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="checkpoint whose tokens and chat template count")
    parser.add_argument(
        "--data-type", default="math", choices=DATA_TYPES, help="prompt format of questions (default: math)"
    )
    parser.add_argument(
        "--template",
        default="auto",
        help="auto, chat (the tokenizer's), for questions also plain or {{problem}} = text",
    )
    parser.add_argument("--start-with-think", action="store_true", help="the prompt opens the thought")
    parser.add_argument("--columns", type=columns_option, help="WANTED=IN_THE_FILE,... such as response=solution")
    return parser.parse_args(arguments)


def _from_question(row: Record, writer: Writer, columns: Mapping[str, str]) -> tuple[str, str] | Fault:
    question_field = "question" if "question" in row.values or "prompt" not in row.values else "prompt"
    for name in (question_field, "response"):
        fault = next(text_faults(row, name, columns), None)
        if fault is not None:
            return fault
    system = system_of(row)
    if isinstance(system, Fault):
        return system
    return writer.prompt(Task("", row.values[question_field], None, row.values), system), row.values["response"]


def _from_chat(row: Record, name: str, writer: Writer) -> tuple[str, str] | Fault:
    chat = conversation_of(row, name)
    return chat if isinstance(chat, Fault) else (writer.conversation(chat.turns), chat.response)


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
