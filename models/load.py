"""A checkpoint folder -> its family's model."""

from collections.abc import Collection
from pathlib import Path

import torch

from models import checkpoint as layout_io
from models import lora
from models.canvas import CanvasLM
from models.fingerprint import kept_base, require_base
from models.model import DiffusionLM
from models.spec import CheckpointSpec, config_errors
from models.tokenizer import read_tokenizer
from models.vision.seeing import see


def load_model(
    path: str | Path | CheckpointSpec,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    model_base: str | None = None,
    random_init_seed: int | None = None,
    besides: Collection[str] = (),
    adapters_dtype: torch.dtype | None = None,
    unread: bool = False,
    image_tokenizer: str | None = None,
) -> DiffusionLM:
    """A model from a checkpoint folder (or hub name) in its original layout, or from a folder of adapters.

    path: a `CheckpointSpec` too, whose files are not looked at again; the base of its adapters is not compared then.
    dtype: "float32" | "bfloat16" | "float16". model_base: the family's name, where config.json alone does not name it.
    random_init_seed: the folder holds config.json and tokenizer but no weights; they are drawn from this seed. besides:
    weights of the folder that are no part of the model. adapters_dtype: of the adapters of such a folder; default the
    base's. unread: on the host, weights that are not drawn stay in their files for an engine that shards them
    (`models.unread`). image_tokenizer: folder or hub name of a family's image tokenizer that is no part of the
    checkpoint, read when pictures come.
    ValueError: no such folder, unknown family, weights that do not fit the config, adapters whose base has changed, an
    image tokenizer for a family that has none.
    """
    if isinstance(path, CheckpointSpec):
        spec = path
    else:
        require_base(spec := CheckpointSpec.read(path, model_base))
    if spec.base is not None:
        return _load_adapted(spec, spec.base, dtype, device, adapters_dtype, unread, image_tokenizer)
    _check_device(device)
    torch_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(f"dtype {dtype!r} is not a torch type: use float32, bfloat16 or float16.")
    tokenizer = read_tokenizer(spec.folder, spec.family)
    if random_init_seed is not None:
        network = layout_io.random_network(spec, torch_dtype, random_init_seed)
    elif unread:
        network = layout_io.unread_network(spec, torch_dtype, besides)
    else:
        network = layout_io.read_weights(spec, torch_dtype, device, besides)
    with config_errors(spec.folder, spec.family):
        kind = DiffusionLM if spec.family.noise == "mask" else CanvasLM
        model = kind(network, spec, layout_io.read_carried_files(spec.folder), tokenizer)
    see(model, spec.family, image_tokenizer)
    return model.to(device=device).eval()


def _check_device(device: str | torch.device) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device {str(device)!r} is none that torch knows: use cpu, cuda or cuda:0.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: torch sees no GPU here. Use cpu.")


def _load_adapted(
    spec: CheckpointSpec,
    base: CheckpointSpec,
    dtype: str | torch.dtype,
    device: str | torch.device,
    adapters_dtype: torch.dtype | None,
    unread: bool,
    image_tokenizer: str | None,
) -> DiffusionLM:
    """The base with the folder's adapters; the block size is the folder's."""
    model = load_model(base, dtype, device, unread=unread, image_tokenizer=image_tokenizer)
    model.adapters = lora.read(spec.folder, model.model.requires_grad_(False), adapters_dtype)
    folder = Path(str(model.adapters.base_model_name_or_path)).expanduser()
    if folder.is_dir():  # not a name on the hub
        model.adapters.base_model_name_or_path = str(folder.resolve())
    model.base_fingerprint = kept_base(spec.folder)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(lora.is_adapter(name))
    model.spec, model.block_size = spec, spec.block_size
    return model.to(device=device).eval()
