"""A checkpoint's folder: where it is, its JSON files and its weight files, without reading a weight."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open


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


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the folder's weights. ValueError when there are none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / f"{name}.index.json").is_file():
            listed = read_json(folder / f"{name}.index.json").get("weight_map") or {}
            return [folder / file for file in sorted(set(listed.values()))]
        if (folder / name).is_file():
            return [folder / name]
    raise ValueError(
        f"{folder} has no weights (model.safetensors or its index): copy the whole checkpoint again or give another "
        "folder."
    )


@contextmanager
def writing_weights(folder: Path) -> Iterator[None]:
    """While safetensors writes into a folder that has its config.json: its errors as OSErrors, and its files, which it
    makes with mode 0600, with the mode that the umask gives others."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{folder} could not be written: {error}") from error
    for path in folder.glob("*.safetensors"):
        path.chmod((folder / "config.json").stat().st_mode & 0o777)


def weight_names(folder: Path) -> set[str]:
    """Names of the folder's weights, from the index or the headers; empty where only reading them all would tell."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return set(read_json(index).get("weight_map") or {})
    names: set[str] = set()
    with suppress(OSError, SafetensorError), safe_open(folder / "model.safetensors", "pt") as file:
        names.update(file.keys())
    return names
