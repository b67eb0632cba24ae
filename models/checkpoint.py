"""Checkpoint folders in their original layout, in and out. Code found in a folder is carried along and never run."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.families import Family, Piece
from models.folder import read_json, weight_files, writing_weights
from models.spec import CheckpointSpec, hf_config, network_class

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".index.json")
_CARRIED_MAX_BYTES = 64 * 2**20

Parts = list[tuple[str, Piece]]


def read_carried_files(folder: Path) -> dict[str, bytes]:
    """Everything beside the weights (config, tokenizer, remote-code files, licence): saved again byte by byte."""
    files = (p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.endswith(_WEIGHT_SUFFIXES))
    return {p.name: p.read_bytes() for p in files if p.stat().st_size <= _CARRIED_MAX_BYTES}


def empty_network(family: Family, raw_config: Mapping[str, Any]) -> PreTrainedModel:
    """The family's network with every parameter on the meta device: names and shapes; buffers are real."""
    config = hf_config(family, raw_config)
    with init_empty_weights(include_buffers=False):
        network = network_class(family)(config)
        if family.adapt is not None:
            family.adapt(network, raw_config)
    return network


def random_network(spec: CheckpointSpec, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """The checkpoint's network with weights as transformers draws them, from this seed alone."""
    family, raw_config = spec.family, spec.raw
    config = hf_config(family, raw_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network_class(family)(config)
    if family.adapt is not None:
        family.adapt(network, raw_config)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def read_weights(
    spec: CheckpointSpec, dtype: torch.dtype, device: torch.device | str = "cpu", besides: Collection[str] = ()
) -> PreTrainedModel:
    """The checkpoint's network with its weights, one tensor in memory beside them at a time. ValueError when a file is
    absent or damaged, or a weight is missing, extra or misshapen; those named `besides` are left unread."""
    folder, family, raw_config = spec.folder, spec.family, spec.raw
    network = empty_network(family, raw_config)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, dtype=dtype, device=device)))
    network.tie_weights()
    weights = dict(network.named_parameters())
    parts = stored_parts(weights, family, raw_config)
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "misshapen": []}
    unread = set(parts)
    tied = {piece.name for piece in family.pieces(raw_config, "lm_head.weight", network.lm_head.weight.shape)}
    for name, tensor in stored_tensors(folder):
        unread.discard(name)
        if name not in parts:
            if name not in tied and name not in besides and not name.endswith("rotary_emb.inv_freq"):
                problems["unexpected"].append(name)
        elif tuple(tensor.shape) != stored_shape(weights, parts[name]):
            problems["misshapen"].append(f"{name} {list(tensor.shape)}")
        else:
            _copy_in(tensor, weights, parts[name])
    problems["missing"] = list(unread)
    said = [f"{kind} {sorted(names)[:4]}" for kind, names in problems.items() if names]
    if said:
        raise ValueError(f"the weights in {folder} do not fit {family.name} and its config.json: {'; '.join(said)}.")
    return network


def stored_parts(weights: Mapping[str, Tensor], family: Family, raw_config: Mapping[str, Any]) -> dict[str, Parts]:
    """Name in the checkpoint -> the (weight name, piece) pairs that it holds, in the order of its rows."""
    parts: dict[str, Parts] = {}
    for weight, tensor in weights.items():
        for piece in family.pieces(raw_config, weight, tensor.shape):
            parts.setdefault(piece.name, []).append((weight, piece))
    for pairs in parts.values():
        pairs.sort(key=lambda pair: pair[1].rows or (0, 0))
    return parts


def stored_shape(weights: Mapping[str, Tensor], parts: Parts) -> tuple[int, ...]:
    """The shape that a checkpoint's tensor has."""
    weight, last = parts[-1]
    shape = tuple(weights[weight][last.at].shape)
    return shape if last.rows is None else (last.rows[1], *shape[1:])


def stored_weights(weights: Mapping[str, Tensor], family: Family, raw_config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A network's weights under the checkpoint's names and in its shapes: `read_weights` reversed."""
    stored = {}
    for name, parts in stored_parts(weights, family, raw_config).items():
        tensors = [_taken_out(weights[weight][piece.at], piece) for weight, piece in parts]
        stored[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return stored


@torch.no_grad()
def _copy_in(stored: Tensor, weights: Mapping[str, Tensor], parts: Parts) -> None:
    for weight, piece in parts:
        source = stored if piece.rows is None else stored[slice(*piece.rows)]
        if (piece.scale, piece.shift) != (1.0, 0.0):
            source = source.double() * piece.scale + piece.shift
        weights[weight][piece.at].copy_(source)


def _taken_out(part: Tensor, piece: Piece) -> Tensor:
    if (piece.scale, piece.shift) == (1.0, 0.0):
        return part
    return ((part.double() - piece.shift) / piece.scale).to(part.dtype)


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight in the folder's safetensors files, or else its PyTorch files (read as data, no
    code runs). ValueError when there is no file, or one is absent or damaged."""
    for path in weight_files(folder):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        yield name, file.get_tensor(name)
            else:
                yield from torch.load(path, map_location="cpu", mmap=True, weights_only=True).items()
        except (OSError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise ValueError(
                f"{path} cannot be read ({type(error).__name__}: {error}). Copy the whole checkpoint again or give "
                "another folder."
            ) from error


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
    total = 0
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            return sum(tensor.numel() for _, tensor in stored_tensors(folder))
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def write_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], carried: Mapping[str, bytes], dtype: torch.dtype
) -> None:
    """A checkpoint folder in the original layout: carried files as they are, config.json's torch_dtype set to what is
    saved."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in carried.items():
        (folder / name).write_bytes(content)
    config = read_json(folder / "config.json")
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    with writing_weights(folder):
        save_torch_state_dict({name: _alone(weight) for name, weight in weights.items()}, folder, max_shard_size="5GB")


def _alone(weight: Tensor) -> Tensor:
    """The weight on the CPU, in memory that no other weight shares."""
    weight = weight.detach().cpu().contiguous()
    return weight if weight.untyped_storage().nbytes() == weight.nbytes else weight.clone()


def first_ids(*sources: Any) -> tuple[int, ...]:
    """The union of ids given as an int, a list of ints or None, in order of first sight."""
    ids: dict[int, None] = {}
    for source in sources:
        for value in source if isinstance(source, (list, tuple)) else [source]:
            if value is not None:
                ids[int(value)] = None
    return tuple(ids)
