"""A checkpoint's tokenizer, loaded without remote code."""

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from models.families import Family
from models.folder import read_json

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


def read_tokenizer(folder: Path, family: Family | None) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer: of the class of transformers that its files name, or the family's where they name remote
    code. None when the folder has no tokenizer files."""
    if not any((folder / name).is_file() for name in _FILES):
        return None
    config = read_json(folder / "tokenizer_config.json")
    try:
        return _load(folder, config, family)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the tokenizer in {folder} cannot be read ({type(error).__name__}: {reason}): copy its files again."
        ) from error


def _load(folder: Path, config: dict[str, Any], family: Family | None) -> PreTrainedTokenizerBase:
    named = getattr(transformers, str(config.get("tokenizer_class")), None)
    if isinstance(named, type) and issubclass(named, PreTrainedTokenizerFast):
        return named.from_pretrained(folder)
    if "AutoTokenizer" in (config.get("auto_map") or {}) and family is not None and family.tokenizer_class is not None:
        return getattr(transformers, family.tokenizer_class).from_pretrained(folder)
    from transformers import AutoTokenizer  # imports torch, which the trace viewer can do without

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
