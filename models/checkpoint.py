"""Checkpoint folders in their original layout, in and out. Code found in a folder is carried along and never run."""

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from models.families import Family, Piece
from models.folder import read_json, weight_files, writing_weights
from models.spec import CheckpointSpec, config_errors, hf_config, network_class
from models.stored import file_headers, file_tensor, stored_headers, stored_tensors
from models.unread import stand_in

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".index.json")
_READ_BY_LOADING = ("config", "generation_config", "tokenizer", "vocab", "merges", "special_tokens", "added_tokens")
_CARRIED_MAX_BYTES = 64 * 2**20
_FLOATS = {"F64", "F32", "F16", "BF16", torch.float64, torch.float32, torch.float16, torch.bfloat16}

Parts = list[tuple[str, Piece]]

logger = logging.getLogger(__name__)


def read_carried_files(folder: Path) -> dict[str, bytes]:
    """Everything beside the weights (config, tokenizer, remote-code files, licence): saved again byte by byte. A link
    that leads elsewhere is followed for files that loading reads, and left out with a warning otherwise."""
    files = (p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.endswith(_WEIGHT_SUFFIXES))
    kept = [p for p in files if p.stat().st_size <= _CARRIED_MAX_BYTES]
    foreign = [p.name for p in kept if _leads_elsewhere(p) and not p.name.startswith(_READ_BY_LOADING)]
    if foreign:
        logger.warning("%s: %s is a link to a file elsewhere and not copied into checkpoints", folder, foreign[0])
    return {p.name: p.read_bytes() for p in kept if p.name not in foreign}


def _leads_elsewhere(path: Path) -> bool:
    """Whether a link leaves its folder, and is none of the hub's cache, which keeps files beside its snapshots."""
    target = path.resolve()
    return not target.is_relative_to(path.parent.resolve()) and target.parent.name != "blobs"


def empty_network(family: Family, raw_config: Mapping[str, Any]) -> PreTrainedModel:
    """The family's network with every parameter on the meta device: names and shapes; buffers are real."""
    config = hf_config(family, raw_config)
    # drawing on meta takes as long as on the CPU
    with init_empty_weights(include_buffers=False), no_init_weights(), _nothing_filled():
        network = network_class(family)(config)
        if family.adapt is not None:
            family.adapt(network, raw_config)
    network.tie_weights()
    return network


@contextmanager
def _nothing_filled() -> Iterator[None]:
    """Each parameter is made on the CPU before it goes to the meta device, and under deterministic algorithms torch
    writes NaN into all of it: gigabytes a layer of experts."""
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = fills


def random_network(spec: CheckpointSpec, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """The checkpoint's network with weights as transformers draws them, from this seed alone."""
    family, raw_config = spec.family, spec.raw
    with config_errors(spec.folder, family), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = network_class(family)(hf_config(family, raw_config))
        if family.adapt is not None:
            family.adapt(network, raw_config)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network


def read_weights(
    spec: CheckpointSpec, dtype: torch.dtype, device: torch.device | str = "cpu", besides: Collection[str] = ()
) -> PreTrainedModel:
    """The checkpoint's network with its weights, one tensor in memory beside them at a time. ValueError when a file is
    absent or damaged, a weight is missing, extra, misshapen or quantised, or a head of its own stands beside a tied
    one; all of it before memory is taken. Weights named `besides` are left unread."""
    with config_errors(spec.folder, spec.family):
        network = empty_network(spec.family, spec.raw)
    _check_stored(spec, network, besides)
    made: dict[nn.Parameter, nn.Parameter] = {}  # one that is tied is made once
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                made[parameter] = nn.Parameter(torch.empty_like(parameter, dtype=dtype, device=device))
            setattr(module, name, made[parameter])
    network.tie_weights()
    weights = weights_of(network)
    parts = stored_parts(weights, spec.family, spec.raw)
    for name, tensor in stored_tensors(spec.folder):
        if name in parts:
            _copy_in(tensor, weights, parts[name])
    return network


def unread_network(spec: CheckpointSpec, dtype: torch.dtype, besides: Collection[str] = ()) -> PreTrainedModel:
    """The checkpoint's network, each of whose weights is read from its file when it is asked for (`models.unread`).
    ValueErrors as `read_weights`."""
    with config_errors(spec.folder, spec.family):
        network = empty_network(spec.family, spec.raw)
    _check_stored(spec, network, besides)
    weights = weights_of(network)
    files = {name: path for path in weight_files(spec.folder) for name, _, _ in file_headers(path)}
    sources: dict[str, list[tuple[str, Piece]]] = {}
    for stored, parts in stored_parts(weights, spec.family, spec.raw).items():
        for weight, piece in parts:
            sources.setdefault(weight, []).append((stored, piece))

    def read(weight: str, whole: Tensor) -> Tensor:
        for stored, piece in sources[weight]:
            _copy_in(file_tensor(files[stored], stored), {weight: whole}, [(weight, piece)])
        return whole

    def read_new(weight: str, shape: torch.Size) -> Tensor:
        return read(weight, torch.empty(shape, dtype=dtype))

    for prefix, module in network.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            weight = f"{prefix}.{name}" if prefix else name
            if weight in sources:  # else it is tied to one that is
                setattr(module, name, stand_in(parameter.shape, dtype, partial(read_new, weight, parameter.shape)))
    for name, buffer in kept_buffers(network).items():
        read(name, buffer)
    network.tie_weights()
    return network


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """All that a checkpoint holds of a network, by name: parameters, a tied one once, and buffers."""
    return {**dict(network.named_parameters()), **kept_buffers(network)}


def kept_buffers(network: nn.Module) -> dict[str, Tensor]:
    """Buffers that are part of a checkpoint. Nothing trains them, and they keep their own type."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in network.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def kept_names(network: nn.Module, spec: CheckpointSpec) -> Collection[str]:
    """Names of those buffers in the checkpoint."""
    return stored_parts(kept_buffers(network), spec.family, spec.raw).keys()


def _check_stored(spec: CheckpointSpec, network: PreTrainedModel, besides: Collection[str]) -> None:
    """ValueError where the names, shapes and types in the folder's files are not those of the network."""
    weights = weights_of(network)
    parts = stored_parts(weights, spec.family, spec.raw)
    head = {piece.name for piece in spec.family.pieces(spec.raw, "lm_head.weight", network.lm_head.weight.shape)}
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "misshapen": [], "quantised": []}
    unread, tied = set(parts), []
    for name, shape, kind in stored_headers(spec.folder):
        unread.discard(name)
        if name not in parts:
            if name in head:
                tied.append(name)
            elif name not in besides and not name.endswith("rotary_emb.inv_freq"):
                problems["unexpected"].append(name)
        elif kind not in _FLOATS:
            problems["quantised"].append(f"{name} ({str(kind).removeprefix('torch.')})")
        elif shape != stored_shape(weights, parts[name]):
            problems["misshapen"].append(f"{name} {list(shape)}")
    problems["missing"] = list(unread)
    found = [f"{kind} {sorted(names)[:4]}" for kind, names in problems.items() if names]
    if found:
        raise ValueError(
            f"the weights in {spec.folder} do not fit {spec.family.name} and its config.json: {'; '.join(found)}."
        )
    if tied:
        _require_tied(spec, tied[0])


def _require_tied(spec: CheckpointSpec, head: str) -> None:
    """ValueError where the stored head is not the stored embedding, though config.json ties the two."""
    (embedding,) = spec.family.pieces(spec.raw, "model.embed_tokens.weight", ())
    stored = {name: tensor for name, tensor in stored_tensors(spec.folder) if name in (head, embedding.name)}
    if not torch.equal(stored[head], stored[embedding.name]):
        raise ValueError(
            f"{spec.folder}: config.json ties the output head to the embedding, but the files hold a {head} of its "
            "own. Set tie_word_embeddings (LLaDA: weight_tying) to false to keep it, or remove it."
        )


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


def write_checkpoint(
    folder: Path,
    weights: Mapping[str, Tensor],
    carried: Mapping[str, bytes],
    dtype: torch.dtype,
    unrounded: Collection[str] = (),
) -> None:
    """A checkpoint folder in the original layout: weights in `dtype`, those named `unrounded` in their own, carried
    files as they are, config.json's torch_dtype set to what is saved."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in carried.items():
        (folder / name).write_bytes(content)
    config = read_json(folder / "config.json")
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    with writing_weights(folder):
        alone = {name: _alone(w, w.dtype if name in unrounded else dtype) for name, w in weights.items()}
        save_torch_state_dict(alone, folder, max_shard_size="5GB")


def _alone(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight on the CPU in this type, in memory that no other weight shares."""
    weight = weight.detach().cpu().to(dtype).contiguous()
    return weight if weight.untyped_storage().nbytes() == weight.nbytes else weight.clone()


def first_ids(*sources: Any) -> tuple[int, ...]:
    """The union of ids given as an int, a list of ints or None, in order of first sight."""
    ids: dict[int, None] = {}
    for source in sources:
        for value in source if isinstance(source, (list, tuple)) else [source]:
            if value is not None:
                ids[int(value)] = None
    return tuple(ids)
