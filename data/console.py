"""What the commands in data/ share."""

import argparse
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.families import FAMILIES, Family
from runtime.text import print_error


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Inside, a warning is one line on stderr, without the place in the code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print_error(str(message), "warning: ")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def columns_option(text: str) -> dict[str, str]:
    """`question=problem,ground_truth_answer=answer` as a mapping of wanted to given names."""
    pairs = [pair.split("=", 1) for pair in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: write WANTED=IN_THE_FILE, several with commas between")
    return {wanted: given for wanted, given in pairs}


def load_tokenizer(folder: Path) -> Any:
    """A checkpoint's tokenizer, without any code of its own."""
    if not folder.is_dir():
        raise ValueError(f"--tokenizer {folder}: no such folder; it takes a checkpoint's folder")
    from transformers import logging

    from models.tokenizer import read_tokenizer

    logging.set_verbosity_error()
    tokenizer = read_tokenizer(folder, _family_of(folder))
    if tokenizer is None:
        raise ValueError(f"--tokenizer {folder} has no tokenizer files (tokenizer.json or vocab files): give another")
    return tokenizer


def chat_name(folder: Path | None) -> str | None:
    """The name of a checkpoint's family, where that has a chat format; None where it has none or is not known."""
    family = _family_of(folder)
    return family.name if family is not None and family.chat is not None else None


def _family_of(folder: Path | None) -> Family | None:
    """The family that the folder's config.json names by its model_type, None where it has none or no family does."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return None
    return next((family for family in FAMILIES if config.get("model_type") in family.model_types), None)
