"""Checkpoint folders in their original layout, in and out. Code found in a folder is carried along and never run."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from models.attention import ATTENTION_NAME
from models.family import Family

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".index.json")
_CARRIED_MAX_BYTES = 64 * 2**20
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


def resolve_folder(path: str | Path) -> Path:
    """A local checkpoint folder; a name like `org/model` that is no folder is fetched from the hub (HF_HUB_OFFLINE
    honoured)."""
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise ValueError(f"model path {folder} has no config.json: give the folder of a checkpoint.")
    name = str(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        try:
            return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.pth", "*.msgpack", "*.h5"]))
        except Exception as error:
            raise ValueError(
                f"model path {name!r} is no folder and could not be fetched from the hub ({type(error).__name__}). "
                "Give a local folder, or check the name and the network."
            ) from error
    raise ValueError(f"model path {name!r} does not exist. Give a checkpoint folder or a hub name (org/model).")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} when the file is absent. ValueError names a malformed file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object.")
    return value


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, loaded without remote code; None when the folder has no tokenizer files."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def read_carried_files(folder: Path) -> dict[str, bytes]:
    """Everything beside the weights (config, tokenizer, remote-code files, licence): saved again byte by byte."""
    files = (p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.endswith(_WEIGHT_SUFFIXES))
    return {p.name: p.read_bytes() for p in files if p.stat().st_size <= _CARRIED_MAX_BYTES}


def read_weights(folder: Path, family: Family, hf_config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """transformers' class of the family with the folder's weights. ValueError when a file is absent or damaged, or a
    weight is missing, extra or misshapen."""
    try:
        loaded: Any = family.model_class.from_pretrained(
            folder,
            config=hf_config,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            key_mapping=dict(family.key_map or {}),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{folder} has no weights that can be read: {error} Copy the whole checkpoint again or give another folder."
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if hf_config.tie_word_embeddings:
        missing = [name for name in missing if name != "lm_head.weight"]
    unexpected = sorted(k for k in info["unexpected_keys"] if not k.endswith("rotary_emb.inv_freq"))
    mismatched = sorted(str(k) for k in info["mismatched_keys"])
    problems = [
        f"{kind} {names[:4]}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", mismatched))
        if names
    ]
    if problems:
        raise ValueError(
            f"the weights in {folder} do not fit {family.name} and its config.json: {'; '.join(problems)}."
        )
    return model


def write_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], carried: Mapping[str, bytes], dtype: torch.dtype
) -> None:
    """A checkpoint folder in the original layout: carried files as they were, config.json's torch_dtype set to what
    is saved."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in carried.items():
        (folder / name).write_bytes(content)
    config = read_json(folder / "config.json")
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_torch_state_dict({k: v.detach().contiguous().cpu() for k, v in weights.items()}, folder, max_shard_size="5GB")


def first_ids(*sources: Any) -> tuple[int, ...]:
    """The union of ids given as an int, a list of ints or None, in order of first sight."""
    ids: dict[int, None] = {}
    for source in sources:
        for value in source if isinstance(source, (list, tuple)) else [source]:
            if value is not None:
                ids[int(value)] = None
    return tuple(ids)
