"""Reads a data file as training does and reports what is in it.

    python data/check.py data/MATH_train.json --data-type math
    python data/check.py own.jsonl --data-type math --columns question=problem,ground_truth_answer=answer
    python data/check.py MATH500 --data-type math --tokenizer path/to/SDAR-4B-Chat --max-prompt-tokens 784
    python data/check.py sft.json --data-type sft
    python data/check.py preferences.json --data-type dpo
    python data/check.py SEEDBench_IMG_32 --data-type mmu

Exit status 0: training can use the file. 1: it would stop at the line that is named.
"""

import argparse
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from configs.schema import DATA_TYPES
from data.catalog import CATALOG
from data.console import chat_name, columns_option, load_tokenizer, warnings_as_lines
from data.control import encode_all, uncut
from data.faults import Fault
from data.pictures import PictureSource
from data.preferences import Pair, scan_pairs
from data.tasks import Example, Task, Turns, resolve_dataset, scan_examples, scan_tasks, summary
from data.templates import Format, Writer, chat_formats
from data.traces import LISTS, is_compared, no_pairs, paired
from models.vision.images import ImageFault, open_image
from runtime.pipes import quiet_pipes
from runtime.text import print_error, print_text

PERCENTILES = (0, 50, 90, 99, 100)
_BATCH_TEXTS = 256
_SHOWN_ROWS = 5
_OF_TASK = ("set", "entry", "task", "prompt_ids", "reward")
Texts = dict[str, str]


class Findings:
    """What one pass over a file found. `rows` numbers those kept; `lengths` has theirs in that order, by text
    name. `traces`: of a model's responses what makes them pairs."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.dropped: list[Fault] = []
        self.stopping: list[Fault] = []
        self.broken: str | None = None
        self.num_repeated = 0
        self.rows = array("q")
        self.num_pictures = 0
        self.bad_pictures: list[ImageFault] = []
        self.lengths: dict[str, array[int]] = {}
        self.traces: list[Mapping[str, Any]] = []

    @property
    def first_bad_line(self) -> str | None:
        """The line that training would stop at."""
        if self.stopping:
            return str(self.stopping[0])
        return self.broken


def examine(
    items: Iterable[Task | Example | Pair | Fault],
    texts_of: Callable[[Task | Example | Pair], Texts],
    measure: Callable[[list[str]], list[int]],
) -> Findings:
    """One pass over a scanned file. `texts_of` names the texts of one item, `measure` gives the lengths of many."""
    found = Findings()
    seen: set[int] = set()
    batch: list[Texts] = []
    try:
        for item in items:
            found.num_rows += 1
            if isinstance(item, Fault):
                (found.dropped if item.blank else found.stopping).append(item)
                continue
            asked = item.chosen if isinstance(item, Pair) else item
            item_hash = hash((*_said(item), asked.turns, asked.images))
            found.num_repeated += item_hash in seen
            seen.add(item_hash)
            found.rows.append(found.num_rows)
            if isinstance(item, Example) and item.trace is not None:
                found.traces.append({name: item.trace[name] for name in _OF_TASK if name in item.trace})
            batch.append(texts_of(item))
            _look_at(asked.images, found)
            if len(batch) == _BATCH_TEXTS:
                _add_lengths(found, batch, measure)
    except ValueError as error:
        found.broken = str(error)
    _add_lengths(found, batch, measure)
    return found


def _said(item: Task | Example | Pair) -> tuple[str, ...]:
    if isinstance(item, Pair):
        return (*_said(item.chosen), item.rejected.response)
    if isinstance(item, Example) and item.trace is not None:
        return tuple(str(item.trace[name]) for name in ("set", "task", *LISTS) if name in item.trace)
    return (item.question,) if isinstance(item, Task) else (item.prompt, item.response)


def _look_at(images: Iterable[PictureSource], found: Findings) -> None:
    """Opens an item's pictures, each to its last pixel."""
    for image in images:
        found.num_pictures += 1
        if not isinstance(image, tuple):
            try:
                open_image(image)
            except ImageFault as fault:
                found.bad_pictures.append(fault)


def percentiles(lengths: Iterable[int]) -> list[int]:
    """The lengths at PERCENTILES of a list that is not empty, by the nearest rank."""
    ordered = sorted(lengths)
    return [ordered[round(percent / 100 * (len(ordered) - 1))] for percent in PERCENTILES]


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 0 if training can use the file, else 1."""
    options = _parse(arguments)
    with warnings_as_lines():
        try:
            path = resolve_dataset(str(options.path), folder=Path(__file__).parent)
            tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
            family = options.family or chat_name(options.tokenizer)
            texts_of = _texts_of(options, family, tokenizer)
        except (ValueError, OSError) as error:
            print_error(str(error))
            return 1
        root = options.image_root or _default_root(path, options.data_type)
        scan = {"sft": scan_examples, "dpo": scan_pairs}.get(options.data_type)
        if scan is not None:
            items: Iterable[Any] = _of_one_kind(scan(path, columns=options.columns, image_root=root), path)
        else:
            items = scan_tasks(path, data_type=options.data_type, columns=options.columns, image_root=root)
        found = examine(items, texts_of, _measure_with(tokenizer))
    print_text(f"{path} read as {options.data_type}, prompts {f'as for {family}' if family else 'as they stand'}")
    _print_findings(found, "tokens" if tokenizer else "characters", options.max_prompt_tokens)
    return _print_verdict(found, in_pairs=options.data_type == "dpo")


def _of_one_kind(items: Iterable[Example | Pair | Fault], path: Path) -> Iterator[Example | Pair | Fault]:
    """The rows of a file. ValueError at the first that is a pair among a model's responses, or one of these among
    pairs."""
    kinds: set[type] = set()
    for row, item in enumerate(items, 1):
        kinds |= set() if isinstance(item, Fault) else {type(item)}
        if len(kinds) == 2:
            kind, others = ("a pair", "responses of a model") if isinstance(item, Pair) else ("a response", "pairs")
            raise ValueError(f"{path}, row {row}: is {kind}, and rows before it are {others}: give two files.")
        yield item


def _default_root(path: Path, data_type: str) -> Path | None:
    """Where the rows' pictures lie: of a downloaded set where the download put them, else of mmu beside the file."""
    known = CATALOG.get(path.stem)
    if known is not None and known.pictures and (fetched := path.parent / Path(known.pictures).name).is_dir():
        return fetched
    return path.parent if data_type == "mmu" else None


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="a file, or a name as in dataset.train_dataset")
    parser.add_argument("--data-type", required=True, choices=[*DATA_TYPES, "sft", "dpo"])
    parser.add_argument("--columns", type=columns_option, help="WANTED=IN_THE_FILE,... as in dataset.columns")
    parser.add_argument(
        "--image-root",
        type=Path,
        metavar="DIR",
        help="open the rows' pictures, which lie in this folder (default: where download_data.py put them; mmu: that "
        "of the file)",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="count tokens with this checkpoint's tokenizer")
    parser.add_argument("--max-prompt-tokens", type=int, help="count the prompts that are longer (needs --tokenizer)")
    parser.add_argument(
        "--family", choices=sorted(chat_formats()), help="whose prompt to render (default: the tokenizer's)"
    )
    parser.add_argument(
        "--template", default="auto", help="auto, chat (the tokenizer's template), plain, or a text with {{problem}}"
    )
    parser.add_argument("--start-with-think", action="store_true")
    options = parser.parse_args(arguments)
    if options.image_root is not None and not options.image_root.is_dir():
        parser.error(f"--image-root {options.image_root}: no such folder")
    if options.max_prompt_tokens is not None and not options.tokenizer:
        parser.error("--max-prompt-tokens counts tokens: give --tokenizer DIR too")
    return options


def _texts_of(options: argparse.Namespace, family: str | None, tokenizer: Any) -> Callable[[Any], Texts]:
    as_they_stand = not family and options.template == "auto"
    template = "plain" if as_they_stand else options.template
    writer = Writer(Format(family or "", options.data_type, template, options.start_with_think), tokenizer)
    if options.data_type in ("sft", "dpo"):
        return lambda item: _texts_of_example(item, writer if family else None)

    def texts(task: Task) -> Texts:
        prompt = _joined(task.turns) if as_they_stand and task.turns else writer.prompt(task)
        return {"prompt": prompt, "answer": task.answer or ""}

    texts(Task("", "any question", None, {}))
    return texts


def _joined(turns: Turns) -> str:
    """Of a conversation whose family is not known the turns, one after the other."""
    return "\n".join(content for _, content in turns)


def _texts_of_example(example: Example | Pair, writer: Writer | None) -> Texts:
    if isinstance(example, Pair):
        chosen, rejected = (_texts_of_example(side, writer) for side in (example.chosen, example.rejected))
        return {"prompt": chosen["prompt"], "chosen": chosen["response"], "rejected": rejected["response"]}
    if writer is None and example.turns:
        return {"prompt": _joined(example.turns), "response": example.response}
    prompt, response = writer.example(example) if writer is not None else (example.prompt, example.response)
    return {"prompt": prompt, "response": response}


def _measure_with(tokenizer: Any) -> Callable[[list[str]], list[int]]:
    if tokenizer is None:
        return lambda texts: [len(uncut(text)) for text in texts]
    return lambda texts: [len(ids) for ids in encode_all(tokenizer, texts)]


def _add_lengths(found: Findings, batch: list[Texts], measure: Callable[[list[str]], list[int]]) -> None:
    for name in batch[0] if batch else ():
        found.lengths.setdefault(name, array("q")).extend(measure([texts[name] for texts in batch]))
    batch.clear()


def _print_over_long(found: Findings, most_tokens: int) -> None:
    pairs = zip(found.rows, found.lengths["prompt"], strict=True)
    over = [row for row, length in pairs if length > most_tokens]
    places = ", ".join(f"row {row}" for row in over[:_SHOWN_ROWS]) + (", ..." if len(over) > _SHOWN_ROWS else "")
    print_text(f"over-long  {len(over)} prompts have more than {most_tokens} tokens{': ' + places if over else ''}")


def _print_pairs(traces: list[Mapping[str, Any]]) -> int:
    """Prints the pairs of a model's responses, as training counts them. Returns their number."""
    own = _own(traces)
    found = paired(own, None)
    counts = ", ".join(f"{len(paired(own, count).pairs)} with {count}" for count in (1, 2, 4))
    print_text(
        f"pairs      by dataset.pairs_per_task: {counts}, {len(found.pairs)} with null; left out: "
        f"{found.ungraded} responses without a reward, {len(traces) - len(own)} of model.compared_with"
    )
    return len(found.pairs)


def _own(traces: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are not of the model that an evaluation compared with."""
    return [trace for trace in traces if not is_compared(trace)]


def _print_findings(found: Findings, unit: str, max_prompt_tokens: int | None) -> None:
    print_text(f"rows       {found.num_rows}")
    print_text(f"kept       {len(found.rows)}, {found.num_repeated} of them repeat an earlier one")
    print_text(f"left out   {len(found.dropped)}{': ' + summary(found.dropped) if found.dropped else ''}")
    for name, lengths in found.lengths.items():
        if any(lengths):
            shown = "  ".join(f"{p}% {length}" for p, length in zip(PERCENTILES, percentiles(lengths), strict=True))
            print_text(f"{name:<10} {unit}, percentiles: {shown}")
    if max_prompt_tokens is not None and found.rows:
        _print_over_long(found, max_prompt_tokens)
    if found.num_pictures:
        bad = [Fault(fault.path, "picture", fault.what) for fault in found.bad_pictures]
        print_text(f"pictures   {found.num_pictures}, unusable {len(bad)}{': ' + summary(bad) if bad else ''}")
    if found.stopping:
        print_text(f"wrong      {len(found.stopping)}: {summary(found.stopping)}")


def _print_verdict(found: Findings, *, in_pairs: bool) -> int:
    """Prints whether training can use the file. Returns the exit status."""
    refusal = None
    if found.num_pictures and len(found.bad_pictures) == found.num_pictures:
        refusal = "no picture can be used: give their folder with --image-root (dataset.image_root)"
    elif found.first_bad_line or not found.rows:
        refusal = found.first_bad_line or "none, but no row is left"
    elif in_pairs and found.traces and not _print_pairs(found.traces):
        refusal = f"none, but {no_pairs(_own(found.traces))}"
    if refusal is not None:
        print_text(f"first bad line: {refusal}")
        return 1
    print_text("training can use this file")
    return 0


if __name__ == "__main__":
    quiet_pipes()
    sys.exit(main())
