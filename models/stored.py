"""Weights in a folder's files, read as data: no code runs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.folder import weight_files


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight in the folder's safetensors files, or else its PyTorch files (read as data, no
    code runs). ValueError when there is no file, or one is absent or damaged."""
    for path in weight_files(folder):
        with _reading(path):
            if path.suffix != ".safetensors":
                yield from _pickled(path)
                continue
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)


def stored_headers(folder: Path) -> Iterator[tuple[str, tuple[int, ...], str | torch.dtype]]:
    """(name, shape, type) of every weight as `stored_tensors` gives them, without reading those of safetensors."""
    for path in weight_files(folder):
        yield from file_headers(path)


def file_headers(path: Path) -> Iterator[tuple[str, tuple[int, ...], str | torch.dtype]]:
    """Those of one of the files."""
    with _reading(path):
        if path.suffix != ".safetensors":
            yield from ((name, tuple(tensor.shape), tensor.dtype) for name, tensor in _pickled(path))
            return
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                yield name, tuple(part.get_shape()), part.get_dtype()


def file_tensor(path: Path, name: str) -> Tensor:
    """One weight of a file that has it. ValueError where the file cannot be read."""
    with _reading(path):
        if path.suffix != ".safetensors":
            return dict(_pickled(path))[name]
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong with a file of weights is a ValueError that names it."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, UnpicklingError, EOFError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Copy the whole checkpoint again or give another "
            "folder."
        ) from error


def _pickled(path: Path) -> Iterator[tuple[str, Tensor]]:
    """A PyTorch file's weights. TypeError where it holds anything else."""
    found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise TypeError("it holds no tensors by name")
    yield from found.items()


def stored_tensor(folder: Path, name: str) -> Tensor | None:
    """One weight from the folder's safetensors files; None where they do not hold it."""
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                if name in file.keys():  # noqa: SIM118
                    return file.get_tensor(name)
    return None


def stored_elements(folder: Path) -> int:
    """Elements of all weights in the folder's files, from headers alone where they are safetensors."""
    return sum(math.prod(shape) for _, shape, _ in stored_headers(folder))
