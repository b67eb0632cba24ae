"""Downloads the data sets that the recipes use, by name.

    python data/download_data.py --list
    python data/download_data.py --dataset MATH500 GSM8K
    cd data; python download_data.py --all

An interrupted download resumes where it stopped. Each file is checked against the hub's checksum, read through once,
and only then put in its place. What was fetched is recorded in .download/ beside the data; from then on the name means
that commit and that content, unless --revision says otherwise. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are
honoured.
"""

import argparse
import csv
import difflib
import json
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from filelock import FileLock

from data.catalog import CATALOG, Source
from data.console import warnings_as_lines
from data.faults import Fault
from data.github import Repository
from data.hub import download, sha256
from data.readers import iter_rows
from data.tasks import scan_examples, scan_tasks, summary
from runtime.files import atomic_write_text
from runtime.pipes import quiet_pipes
from runtime.text import print_error, print_text

LETTERS = "ABCD"


@dataclass(frozen=True)
class Record:
    """What was downloaded: kept beside the data; the next download must equal it."""

    repo: str
    file: str
    revision: str
    source_sha256: str
    sha256: str
    rows: int


def fetch(name: str, folder: Path, *, revision: str | None = None, force: bool = False) -> str:
    """Makes `folder`/NAME.json what the catalog says it is; one line that reports what was done.

    A file that is there is kept, with a warning if it is not what this command downloaded.
    ValueError if it cannot be had.
    """
    source, target, aside = CATALOG[name], folder / f"{name}.json", folder / ".download"
    aside.mkdir(parents=True, exist_ok=True)
    with FileLock(aside / f"{name}.lock"):
        record = _read_record(aside / f"{name}.record.json")
        wanted = revision or source.revision or (record.revision if record else "main")
        if target.is_file() and not force:
            if record is None or sha256(target) != record.sha256:
                why = "was changed after its download" if record else "was not downloaded by this command"
                warnings.warn(f"{target} {why} and is kept; --force replaces it", stacklevel=2)
                return "kept as it is"
            if record.revision == wanted:
                return f"is there: {record.rows} rows of commit {record.revision[:8]}"
        part = aside / f"{name}{Path(source.file).suffix}"
        given = Repository.at(source.repo, wanted) if source.pictures else None
        if given is not None:
            given.download(source.file, part)
        commit = download(source.repo, source.file, wanted, part) if given is None else given.commit
        digest = sha256(part)
        if record and record.revision == commit and record.source_sha256 != digest:
            raise ValueError(
                f"commit {commit} gave another file than before (SHA-256 {digest}, was {record.source_sha256}); "
                f"if that is as it should be, remove {aside / name}.record.json"
            )
        ready = _convert(part, source) if source.converter else part
        num_rows, remark = _read_through(ready, source.data_type)
        if given is not None:
            remark = f"{_fetch_pictures(given, source, ready, folder)}{remark}"
        record = Record(source.repo, source.file, commit, digest, sha256(ready), num_rows)
        os.replace(ready, target)
        part.unlink(missing_ok=True)
        atomic_write_text(aside / f"{name}.record.json", json.dumps(asdict(record), indent=1) + "\n")
    return f"downloaded {num_rows} rows of commit {commit[:8]}{remark}"


def _fetch_pictures(given: Repository, source: Source, data: Path, folder: Path) -> str:
    """The rows' pictures, as far as the repository has them; a remark on how many that is."""
    assert source.pictures is not None
    names = dict.fromkeys(row.values["image"] for row in iter_rows(data, {}) if row.values.get("image"))
    there = [name for name in names if f"{source.pictures}/{name}" in given.files]
    aside = folder / Path(source.pictures).name
    for name in there:
        given.download(f"{source.pictures}/{name}", aside / name)
    return f", {len(there)} of their {len(names)} pictures (dataset.image_root={aside})"


def amc23_rows(path: Path) -> Iterator[dict[str, Any]]:
    """AMC 2023 as math tasks; whole answers lose the decimal point that some copies give them."""
    for row in iter_rows(path, {"ground_truth_answer": "answer"}):
        answer = str(row.values["ground_truth_answer"]).strip()
        yield {"question": row.values["question"], "ground_truth_answer": answer.removesuffix(".0")}


def gpqa_rows(path: Path) -> Iterator[dict[str, Any]]:
    """GPQA as option tasks. The right answer has its own column: the options are shuffled, each row's by its question,
    so that everybody gets the same order."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            question = row["Question"].strip()
            right = row["Correct Answer"].strip()
            options = [right, *(row[f"Incorrect Answer {i}"].strip() for i in (1, 2, 3))]
            random.Random(question).shuffle(options)
            listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
            yield {"question": f"{question}\n{listed}", "ground_truth_answer": LETTERS[options.index(right)]}


CONVERTERS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {"amc23_rows": amc23_rows, "gpqa_rows": gpqa_rows}


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 0 if every requested data set is there, 1 if a download failed, 130 when stopped."""
    options = _parse(arguments)
    if options.list:
        _print_list(options.output)
        return 0
    failed = []
    for name in CATALOG if options.all else options.dataset:
        try:
            with warnings_as_lines():
                print_text(f"{name}: {fetch(name, options.output, revision=options.revision, force=options.force)}")
        except (ValueError, OSError) as error:
            failed.append(name)
            print_error(f"{error}", f"{name}: failed: ")
        except KeyboardInterrupt:
            print(f"{name}: stopped; the same command resumes the download", file=sys.stderr)
            return 130
    if failed:
        print(f"{len(failed)} could not be downloaded: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", nargs="+", metavar="NAME", help="one or more names of --list")
    what.add_argument("--all", action="store_true", help="every data set of --list")
    what.add_argument("--list", action="store_true", help="the names, what they are and which are here")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent, help="folder (default: the one of this file)"
    )
    parser.add_argument("--revision", help="a commit, tag or branch of the hub's repository, for one --dataset")
    parser.add_argument("--force", action="store_true", help="download even if the file is there")
    options = parser.parse_args(arguments)
    for name in options.dataset or ():
        if name not in CATALOG:
            near = difflib.get_close_matches(name, CATALOG, 1)
            hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(CATALOG)}"
            parser.error(f"unknown data set {name!r}: {hint}")
    if options.revision and len(options.dataset or ()) != 1:
        parser.error("--revision belongs to one data set: give it with one --dataset NAME")
    return options


def _print_list(folder: Path) -> None:
    for name, source in CATALOG.items():
        record = _read_record(folder / ".download" / f"{name}.record.json")
        here = "-"
        if (folder / f"{name}.json").is_file():
            here = f"here, {record.rows} rows, {record.revision[:8]}" if record else "here, not from this command"
        gated = "; gated: its terms must be accepted" if source.gated else ""
        place = f"github.com/{source.repo}" if source.pictures else source.repo
        print_text(f"{name:<18} {source.data_type:<7} {here:<30} {source.about} ({place}{gated})")


def _convert(part: Path, source: Source) -> Path:
    assert source.converter is not None
    ready = part.with_name(f"{part.stem}.converted.json")
    try:
        rows = list(CONVERTERS[source.converter](part))
    except (KeyError, AttributeError, csv.Error) as error:
        raise ValueError(
            f"{source.repo}/{source.file} has not the columns that were expected: {type(error).__name__}: {error}"
        ) from error
    atomic_write_text(ready, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return ready


def _read_through(path: Path, data_type: str) -> tuple[int, str]:
    """The number of rows of a file, and a remark on those that training would leave out or refuse."""
    num_rows, faults = 0, []
    for item in scan_examples(path) if data_type == "sft" else scan_tasks(path, data_type=data_type):
        num_rows += 1
        if isinstance(item, Fault):
            faults.append(item)
    if not num_rows:
        raise ValueError(f"{path}: no rows")
    return num_rows, f"; {len(faults)} cannot be used: {summary(faults)}" if faults else ""


def _read_record(path: Path) -> Record | None:
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it") from None


if __name__ == "__main__":
    quiet_pipes()
    sys.exit(main())
