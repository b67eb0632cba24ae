"""Tasks for RL and evaluation and examples for SFT: finding a data set, reading it, reporting its faults."""

import difflib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from data.built_in import built_in_file, built_in_names
from data.catalog import CATALOG
from data.conversations import chat_field, conversation_of, question_turns, unused_columns
from data.faults import Fault, caption_flag, check_data_type, example_fault, steps_fault, task_fault
from data.hub import fetch_dataset
from data.pictures import CODES, FIELDS, PictureSource, pictures_of, with_places
from data.readers import SUFFIXES, Record, iter_rows
from data.traces import is_trace, trace_of

_SHOWN_PLACES = 5
Item = TypeVar("Item")
Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Task:
    """One question. `columns` is its whole row after column mapping; `answer` is None where the row has none.

    `id` is the row's task_id or id, else its number in the file, and differs between the tasks of a file. `images`: its
    pictures, in the order of the question's placeholders; it has one for each of them, or none at all. `turns`: (role,
    content) of a prompt that is a chat, whose last turn, the user's, is the question.
    """

    id: str
    question: str
    answer: str | None
    columns: dict[str, Any]
    images: tuple[PictureSource, ...] = ()
    turns: Turns = ()

    @property
    def pictures(self) -> tuple[str | bytes, ...]:
        """Those of its pictures that people and judges can look at: files, or their bytes."""
        return tuple(image for image in self.images if not isinstance(image, tuple))


@dataclass(frozen=True)
class Example:
    """One pair for SFT. `step_map`, if given, has the unmasking step of each response token. `turns`: (role, content)
    of a conversation before the response, which the model's family writes as its prompt; then `prompt` is empty.
    `images`: the pictures of prompt or turns, in the order of their placeholders. `trace`: the record of a response
    that a model sampled (`data.traces`), which has ids in place of all of these. `of`: the label of its data set, where
    there are several."""

    prompt: str
    response: str
    step_map: list[int] | None
    turns: Turns = ()
    images: tuple[PictureSource, ...] = ()
    trace: Mapping[str, Any] | None = None
    of: str = ""


def load_tasks(
    path: Path | str, *, data_type: str, columns: Mapping[str, str] | None = None, image_root: Path | None = None
) -> list[Task]:
    """The tasks of a file. `data_type`: one of `DATA_TYPES`. `columns` maps wanted names to the file's. image_root: the
    folder of the pictures; None: rows are read without theirs.

    A row with a null, empty or unusable value is left out; one warning counts and places all of them.
    ValueError naming file, line or row, and field for a missing field, a wrong type, malformed text, or
    where no task is left.
    """
    tasks, dropped = read_tasks(path, data_type=data_type, columns=columns, image_root=image_root)
    warn_of_dropped(Path(path), len(tasks), dropped)
    return tasks


def read_tasks(
    path: Path | str, *, data_type: str, columns: Mapping[str, str] | None = None, image_root: Path | None = None
) -> tuple[list[Task], list[Fault]]:
    """As `load_tasks`, but returns the faults of the rows left out instead of warning of them."""
    return usable_rows(Path(path), scan_tasks(path, data_type=data_type, columns=columns, image_root=image_root))


def load_examples(
    path: Path | str, *, columns: Mapping[str, str] | None = None, image_root: Path | None = None
) -> list[Example]:
    """The SFT pairs of a file with `prompt` and `response`, or `messages` or `conversations`, and maybe `step_map`;
    pictures, drops and errors as in `load_tasks`. So are the responses of a model, with their traces."""
    unused: Counter[str] = Counter()
    scanned = scan_examples(path, columns=columns, unused=unused, image_root=image_root)
    examples, dropped = usable_rows(Path(path), scanned)
    warn_of_dropped(Path(path), len(examples), dropped)
    warn_of_unused(Path(path), unused, "columns beside conversations that SFT does not use")
    return examples


def scan_tasks(
    path: Path | str, *, data_type: str, columns: Mapping[str, str] | None = None, image_root: Path | None = None
) -> Iterator[Task | Fault]:
    """Every row of the file in order, as a task or a fault, read one at a time."""
    check_data_type(data_type)
    seen: set[str] = set()
    for row in iter_rows(Path(path), columns):
        turns = question_turns(row)
        if isinstance(turns, Fault):
            yield turns
            continue
        if turns is not None:
            row.values["question"] = turns[-1][1]
        elif data_type == "mmu" and "prompt" in row.values:
            row.values.setdefault("question", row.values["prompt"])
        fault = task_fault(row, data_type, columns or {})
        if fault is not None:
            yield fault
            continue
        values = row.values
        if data_type == "mmu" and "is_caption" in values:
            values["is_caption"] = caption_flag(values)
        if values.get("ground_truth_answer") is not None:
            values["ground_truth_answer"] = str(values["ground_truth_answer"])
        name = next(
            (str(values[key]) for key in ("task_id", "id") if isinstance(values.get(key), str | int)), str(row.number)
        )
        while name in seen:
            name = f"{name}#{row.number}"
        seen.add(name)
        task = Task(name, values["question"], values.get("ground_truth_answer"), values, turns=tuple(turns or ()))
        yield task if image_root is None else _with_pictures(task, row, data_type, image_root)


def _with_pictures(task: Task, row: Record, data_type: str, root: Path) -> Task | Fault:
    images = pictures_of(row, root)
    if isinstance(images, Fault):
        return images
    if not images and data_type == "mmu":
        return Fault(row.place, "image", "is absent or empty", blank=True)
    asked = [content for role, content in task.turns if role == "user"] or [task.question]
    if images and isinstance(placed := with_places(asked, len(images)), str):
        return Fault(row.place, "question", placed, blank=True)
    turns = _with_user_turns(task.turns, placed) if images and task.turns else task.turns
    return replace(task, images=images, turns=turns)


def scan_examples(
    path: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    unused: Counter[str] | None = None,
    image_root: Path | None = None,
) -> Iterator[Example | Fault]:
    """Every row of an SFT file in order, as an example or as its fault. unused: counts the columns beside conversations
    that hold something and that no example shows."""
    for row in iter_rows(Path(path), columns):
        example, shown = _example(row, columns or {})
        if image_root is not None and not isinstance(example, Fault):
            example = seeing(example, row, image_root)
            shown |= {*FIELDS, CODES}
        if unused is not None and not isinstance(example, Fault) and (field := chat_field(row)) is not None:
            unused.update(set(unused_columns(row, field)) - shown)
        yield example


def _example(row: Record, columns: Mapping[str, str]) -> tuple[Example | Fault, set[str]]:
    """The row's example without pictures, and the columns beside a conversation that it uses."""
    if is_trace(row):
        trace = trace_of(row)
        return trace if isinstance(trace, Fault) else Example("", "", None, trace=trace), {*row.values}
    steps = row.values.get("step_map")
    if (field := chat_field(row)) is not None:
        chat = steps_fault(row) or conversation_of(row, field)
        if isinstance(chat, Fault):
            return chat, set()
        return Example("", chat.response, steps, chat.turns), {"step_map"}
    if {"chosen", "rejected"} <= row.values.keys() and "response" not in row.values:
        return Fault(row.place, "chosen", "and 'rejected' are a pair: set training.sft_objective=dpo"), set()
    fault = example_fault(row, columns)
    return fault or Example(row.values["prompt"], row.values["response"], steps), set()


def seeing(example: Example, row: Record, root: Path) -> Example | Fault:
    """The example with its pictures, placed in the turns of the user."""
    images = pictures_of(row, root)
    if isinstance(images, Fault) or not images:
        return images if isinstance(images, Fault) else example
    asked = [content for role, content in example.turns if role == "user"] or [example.prompt]
    placed = with_places(asked, len(images))
    if isinstance(placed, str):
        return Fault(row.place, "messages" if example.turns else "prompt", placed, blank=True)
    if not example.turns:
        return replace(example, prompt=placed[0], images=images)
    return replace(example, turns=_with_user_turns(example.turns, placed), images=images)


def _with_user_turns(turns: Turns, contents: Sequence[str]) -> Turns:
    """The turns with these contents of the user's."""
    said = iter(contents)
    return tuple((role, next(said) if role == "user" else content) for role, content in turns)


def resolve_dataset(name: str, *, folder: Path | str, seed: int = 0) -> Path:
    """The file of a data set: a path as it is, or a name, looked up in `folder` as name.json, .jsonl, .csv or .parquet.

    A built-in task's (tiny_train) is written on demand to `folder`/TASK-<seed>/ (data.built_in.folder_name), and
    hub:OWNER/NAME (see data.hub.fetch_dataset) is fetched once to `folder`/hub/.
    ValueError that names the places searched, what is there, and the download command where there is one.
    """
    folder = Path(folder)
    if name.startswith("hub:"):
        return fetch_dataset(name, folder)
    if (built_in := built_in_file(name, folder, seed)) is not None:
        return built_in
    given = Path(name).expanduser()
    is_file_name = given.suffix in SUFFIXES
    candidates = [given, folder / given] if is_file_name else [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    found = [path for path in candidates if path.is_file()]
    if name and given.is_dir():
        raise ValueError(f"data set {name!r} is a folder: name a file in it (json, jsonl, csv or parquet).")
    if not found and (given.is_file() or (folder / given).is_file()):
        raise ValueError(f"data set {name!r}: {_not_read(given)}")
    if not found:
        raise ValueError(_not_found(name, candidates, folder))
    if len(found) > 1 and not is_file_name:
        raise ValueError(f"data set {name!r} is one of {', '.join(map(str, found))}: name it with its suffix")
    return found[0]


def _not_read(path: Path) -> str:
    kind = f"`{path.suffix}` is not read" if path.suffix else "a file without a suffix is not read"
    return f"{kind}: give json, jsonl, csv or parquet."


def _not_found(name: str, candidates: Iterable[Path], folder: Path) -> str:
    present = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES) if folder.is_dir() else []
    looked_for = ", ".join(dict.fromkeys(map(str, candidates)))
    text = f"no data set {name!r}: looked for {looked_for}; {folder} has {', '.join(present) or 'none'}"
    if name in CATALOG:
        return f"{text}. To get it: python data/download_data.py --dataset {name}"
    known = [*CATALOG, *built_in_names(), *present, *(Path(file).stem for file in present)]
    if name.count("/") == 1 and not Path(name).parent.exists():
        return f"{text}. A data set on the hub is written hub:{name}"
    near = difflib.get_close_matches(name, known, 1)
    return f"{text}. Did you mean {near[0]}?" if near else text


def usable_rows(path: Path, scanned: Iterable[Item | Fault]) -> tuple[list[Item], list[Fault]]:
    """What is usable of a scanned file, and the faults of the rows left out. ValueError for a fault of the whole file,
    or where no row is usable."""
    kept: list[Item] = []
    dropped: list[Fault] = []
    for item in scanned:
        if not isinstance(item, Fault):
            kept.append(item)
        elif item.blank:
            dropped.append(item)
        else:
            raise ValueError(f"{path}, {item}")
    if not kept:
        why = f", all {len(dropped)} were left out: {summary(dropped)}" if dropped else ""
        raise ValueError(f"{path}: no usable row{why}")
    return kept, dropped


def summary(dropped: Iterable[Fault]) -> str:
    """The rows left out, counted by reason, with the first places of each."""
    places: dict[str, list[str]] = defaultdict(list)
    for fault in dropped:
        places[f"{fault.field} {fault.reason}"].append(fault.place)
    return "; ".join(
        f"{reason} ({len(at)}: {', '.join(at[:_SHOWN_PLACES])}{', ...' if len(at) > _SHOWN_PLACES else ''})"
        for reason, at in places.items()
    )


def warn_of_unused(path: Path, unused: Counter[str], what: str) -> None:
    """One warning that names the columns and counts their rows."""
    if unused:
        counted = ", ".join(f"{name} ({count} rows)" for name, count in unused.most_common())
        warnings.warn(f"{path}: {what}: {counted}", stacklevel=3)


def warn_of_dropped(path: Path, num_kept: int, dropped: list[Fault]) -> None:
    """One warning that counts and places the rows left out."""
    if dropped:
        total = num_kept + len(dropped)
        warnings.warn(f"{path}: left out {len(dropped)} of {total} rows: {summary(dropped)}", stacklevel=3)
