"""What every training or evaluation command does before its loop: check, choose a device, make the model, say what
will run."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from configs import find, resolved
from configs.schema import Config, DecodeConfig
from data.tasks import Task, read_tasks, resolve_dataset
from models import DiffusionLM, ValueModel, load_model, load_value_model, lora
from models.checkpoint import hf_config
from models.families import Family, find_family
from models.folder import read_json, resolve_folder
from models.lora import Adapters
from runtime import ranks
from runtime.monitor import Monitor
from runtime.run_folder import RunFolder, run_path
from train.distributed.kind import shards_weights
from train.learner.checkpoint import given_checkpoint, newest_checkpoint
from train.setup.prompts import require_room

logger = logging.getLogger(__name__)


def prepare_process(config: Config) -> None:
    """Process group, threads, random numbers, kernels and log lines of this process."""
    experiment, tf32 = config.experiment, config.training.enable_tf32
    ranks.join(pick_device(config.model.device).type, 60.0 * experiment.timeout_minutes)
    ranks.require_alike("the configuration", resolved(config))
    torch.set_num_threads(experiment.threads or int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(config.training.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(experiment.deterministic, warn_only=True)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"(torch|accelerate|transformers)(\.|$)")


def check_start(config: Config, command: str, with_value: bool = False) -> None:
    """ValueError where the run's folder is another run's, or `command` cannot begin with the checkpoint that
    experiment.resume names."""
    experiment, path = config.experiment, run_path(config)
    goes_on = RunFolder.check(path, resolved(config), overwrite=experiment.overwrite)
    if experiment.resume in ("auto", "never") or (goes_on and newest_checkpoint(RunFolder(path).checkpoints)):
        return
    given_checkpoint(experiment.resume, command, with_value)


@contextmanager
def run_folder(config: Config) -> Iterator[RunFolder]:
    """The run's folder, opened and locked by rank 0; the others get its places."""
    path = run_path(config)
    opened: list[RunFolder] = []

    def open_folder() -> bool:
        opened.append(RunFolder.open(path, resolved(config), overwrite=config.experiment.overwrite))
        return opened[0].resumed

    resumed = ranks.on_main(open_folder)
    with opened[0] if opened else RunFolder(path, resumed) as folder:
        yield folder


def monitor_of(config: Config, folder: RunFolder) -> Monitor:
    """What a run says and logs; silent on other ranks than 0."""
    trackers, rank = config.tracking.report_to, ranks.rank()
    return Monitor(folder.path, trackers=trackers, config=resolved(config), enabled=ranks.is_main(), rank=rank)


def pick_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device is cuda, but torch sees no GPU here. Set model.device=cpu or auto.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def precision(config: Config, device: torch.device) -> str:
    """ "bf16" or "no": training.mixed_precision as this device can do it. bf16 without instructions for it would be
    far slower than fp32."""
    wanted = config.training.mixed_precision
    if wanted == "no":
        return "no"
    capable = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
    if not capable and wanted == "bf16":
        logger.warning("training.mixed_precision=bf16: this %s has no bf16 instructions, fp32 is used", device.type)
    return "bf16" if capable else "no"


def sampling_dtype(config: Config, device: torch.device) -> torch.dtype:
    """The type of the sampler's weights: rollout.dtype, which follows training.mixed_precision where it is auto."""
    wanted = config.rollout.dtype
    if wanted == "auto":
        wanted = precision(config, device)
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not capabilities and Path("/proc/cpuinfo").is_file():
        capabilities = dict.fromkeys(Path("/proc/cpuinfo").read_text().split(), True)
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def check_model_path(config: Config) -> Path:
    """The folder of model.pretrained_model, looked at before anything is loaded. ValueError says what is missing."""
    if not config.model.pretrained_model:
        raise ValueError("model.pretrained_model is not set: give a checkpoint folder or a hub name (org/model).")
    folder = resolve_folder(find(config.model.pretrained_model))
    model_family(config, folder)
    return folder


def model_family(config: Config, folder: Path) -> Family:
    """The family of the checkpoint in `folder`, from its config.json alone. ValueError where model_base disagrees."""
    return find_family(read_json(folder / "config.json"), config.model.model_base, str(folder))


def check_value_base(config: Config) -> Path | None:
    """The folder of model.value_base_model, None without one. ValueError when it is missing, of another family than the
    policy (the two read the same rows), or saved under the same name."""
    if not config.model.value_base_model:
        return None
    if config.model.optimized_value_name == config.model.optimized_name:
        raise ValueError(
            f"model.optimized_value_name and model.optimized_name are both {config.model.optimized_name!r}: "
            "policy and value model need a name each under ckpt/."
        )
    path, model_base = config.model.value_base_model, config.model.model_base
    folder, policy = resolve_folder(find(path)), check_model_path(config)
    value_family, policy_family = (
        find_family(read_json(p / "config.json"), model_base, str(p)) for p in (folder, policy)
    )
    if value_family is not policy_family:
        raise ValueError(
            f"model.value_base_model={path} is a {value_family.name} checkpoint, model.pretrained_model a "
            f"{policy_family.name} one; the value model reads the policy's tokens: give one of the same family."
        )
    return folder


def check_dataset(config: Config, name: str, key: str) -> Path:
    if not name:
        raise ValueError(f"{key} is not set: give a name in {config.dataset.folder}/ (MATH_train) or a path.")
    return resolve_dataset(name, folder=find(config.dataset.folder), seed=config.dataset.seed)


def tasks_of(config: Config, name: str, key: str, data_type: str) -> list[Task]:
    """The tasks of a data set, read as the run will read it: what is malformed is said before any model is loaded."""
    path = check_dataset(config, name, key)
    return read_tasks(path, data_type=data_type, columns=config.dataset.columns)[0]


def check_room(config: Config, folder: Path, decode: DecodeConfig) -> None:
    """ValueError where the responses that a section asks for leave the model no position for a prompt."""
    positions = hf_config(model_family(config, folder), read_json(folder / "config.json")).max_position_embeddings
    require_room(positions, 1, "a prompt of one token", decode)


def make_model(
    config: Config, path: Path | None = None, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> DiffusionLM:
    """The model to train or evaluate, from `path` (a checkpoint of the run) or model.pretrained_model, on the run's
    device where no other is given."""
    seed = config.training.seed if config.model.random_init and path is None else None
    folder, device = path or check_model_path(config), device or pick_device(config.model.device)
    model = load_model(folder, dtype, device, config.model.model_base, seed)
    adapters = adapters_of(config, folder)
    if adapters is not None and model.adapters is None:
        if config.model.random_init:
            raise ValueError("lora.rank: adapters need a base on disk; model.random_init draws one. Save it first.")
        model.add_adapters(adapters, folder.absolute(), config.training.seed)
    if config.training.gradient_checkpointing_enable:
        model.enable_gradient_checkpointing()
    return model


def adapters_of(config: Config, folder: Path) -> Adapters | None:
    """The adapters that a model from `folder` is trained with: the folder's, else the lora section's; None without."""
    section = config.lora
    asked = Adapters(section.rank, section.alpha, section.dropout, tuple(section.target_modules))
    return Adapters.of(folder) or (asked if section.rank else None)


class _WithoutAdapters(torch.nn.Module):
    """A model's base: the model that adapters started from, in the same memory."""

    def __init__(self, model: DiffusionLM):
        super().__init__()
        self.adapted = [model]  # in a list: not a submodule, whose weights would be this one's too

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        with lora.without(self.adapted[0].model):
            return self.adapted[0](*inputs)


def frozen_reference(config: Config, model: DiffusionLM, precision: str) -> torch.nn.Module | None:
    """What gives the log-probabilities of the model that the run began with, where the KL penalty is to it. With
    adapters that is the base without them, at no memory."""
    if config.training.kl_to != "reference" or config.training.beta == 0.0:
        return None
    if model.adapters is not None:
        return _WithoutAdapters(model)
    return make_model(config, dtype=torch.bfloat16 if precision == "bf16" else torch.float32).requires_grad_(False)


def trained_model_device(config: Config) -> torch.device:
    """Where a model to be trained is loaded: the host, where ZeRO-3 or FSDP2 then takes the ranks' shares from it."""
    return torch.device("cpu") if shards_weights(config) else pick_device(config.model.device)


def make_value_model(config: Config, path: Path | None = None) -> ValueModel | None:
    """The value model from `path` (its folder in a checkpoint of the run) or model.value_base_model, where it is
    trained from; None when the config names none."""
    base = check_value_base(config)
    if base is None:
        return None
    seed = config.training.seed if config.model.random_init and path is None else None
    device = trained_model_device(config)
    model = load_value_model(path or base, "float32", device, config.model.model_base, seed)
    if config.training.gradient_checkpointing_enable:
        model.base.enable_gradient_checkpointing()
    return model


def check_blocks(config: Config, folder: Path) -> None:
    """Block families train the blocks that they sample; those of full attention are only a schedule."""
    if model_family(config, folder).attention == "block":
        require_equal_blocks(config.training.block_size, config.rollout.block_size)


def require_equal_blocks(trained: int | None, sampled: int | None) -> None:
    if None not in (trained, sampled) and trained != sampled:
        raise ValueError(
            f"training.block_size={trained} and rollout.block_size={sampled} differ: blocks must be the same "
            "in sampling and training. Set both to one value (or leave training.block_size out)."
        )


def check_block_size(config: Config, model: DiffusionLM) -> None:
    """Training and sampling must cut the sequence alike, or what is trained is not what was sampled."""
    sampled = config.rollout.block_size or model.block_size
    trained = config.training.block_size or sampled
    if model.attention == "block":
        require_equal_blocks(trained, sampled)
    if config.training.block_size is None:
        config.training = replace(config.training, block_size=trained)
    adopt_block_size(model, trained)


def adopt_block_size(model: DiffusionLM, block_size: int) -> None:
    """Makes the trained block size that of the model, which its checkpoints then say too."""
    if model.attention == "block" and block_size != model.block_size:
        warn_of_block_size(block_size, model)
        model.block_size = block_size


def warn_of_block_size(block_size: int, model: DiffusionLM) -> None:
    if model.attention == "block" and block_size != model.block_size:
        logger.warning(
            "block size %d is not the checkpoint's %d: quality may suffer until it is trained",
            block_size,
            model.block_size,
        )
