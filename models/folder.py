"""A checkpoint's folder: where it is, its JSON files and its weight files, without reading a weight."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)


_PICKLED = ("*.bin", "*.pth", "*.msgpack", "*.h5")


def resolve_folder(path: str | Path, skipped: Sequence[str] = _PICKLED) -> Path:
    """A local checkpoint folder; a name like `org/model` that is no folder is fetched from the hub (HF_HUB_OFFLINE
    honoured), without the files `skipped`."""
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise ValueError(f"model path {folder} has no config.json: give the folder of a checkpoint.")
    name = str(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        try:
            return Path(snapshot_download(name, ignore_patterns=list(skipped)))
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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object.")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the folder's weights: a single file before an index, as transformers has it. ValueError when
    there are none, or where an index names what is no file of the folder."""
    for name in ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin"):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            if index.is_file() and not _lists_only(index, name):
                logger.warning("%s has %s beside %s, which is not read: remove what is stale", folder, name, index.name)
            return [whole]
        if index.is_file():
            return [_shard(index, file) for file in sorted(set(_listed(index).values()))]
    raise ValueError(
        f"{folder} has no weights (model.safetensors or its index): copy the whole checkpoint again or give another "
        "folder."
    )


def _listed(index: Path) -> dict[str, str]:
    """Weight name -> file name, of an index. ValueError where it has none."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise ValueError(f"{index} has no weight_map of names to files: copy the whole checkpoint again.")
    return listed


def _lists_only(index: Path, file: str) -> bool:
    with suppress(ValueError):
        return set(_listed(index).values()) == {file}
    return False


def _shard(index: Path, file: str) -> Path:
    path = index.parent / file
    if Path(file).name != file or not path.is_file():
        raise ValueError(f"{index} names {file!r}, which is no file of the folder: copy the whole checkpoint again.")
    return path


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
    """Names of the folder's weights, from the headers or the index; empty where that takes reading them all."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not whole.is_file():
        return set(_listed(index)) if index.is_file() else set()
    names: set[str] = set()
    with suppress(OSError, SafetensorError), safe_open(whole, "pt") as file:
        names.update(file.keys())
    return names


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the folder's weights by name, from the headers of safetensors files; empty where it has none."""
    shapes: dict[str, tuple[int, ...]] = {}
    with suppress(OSError, SafetensorError, ValueError):
        for path in weight_files(folder):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes
