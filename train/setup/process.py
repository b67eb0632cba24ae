"""This process of a command: its process group, device, precision, run folder and monitor."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from configs import resolved
from configs.commands import Command
from configs.schema import Config
from runtime import ranks
from runtime.monitor import Monitor
from runtime.report.recipe import about
from runtime.run_folder import RunFolder, run_path
from train.setup.sources import settings_of

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


def pick_device(name: str) -> torch.device:
    """The device that model.device names. ValueError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device is cuda, but torch sees no GPU here. Set model.device=cpu or auto.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def precision(config: Config, device: torch.device) -> str:
    """ "bf16" or "no": training.mixed_precision as this device supports it. bf16 without instructions for it would be
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


@contextmanager
def run_folder(config: Config, command: Command) -> Iterator[RunFolder]:
    """The run's folder, opened and locked by rank 0; the others get its places."""
    path = run_path(config)
    opened: list[RunFolder] = []

    def open_folder() -> bool:
        settings = settings_of(config, command)
        opened.append(RunFolder.open(path, settings, overwrite=config.experiment.overwrite))
        return opened[0].resumed

    resumed = ranks.on_main(open_folder)
    with opened[0] if opened else RunFolder(path, resumed) as folder:
        yield folder


def monitor_of(config: Config, folder: RunFolder, command: Command) -> Monitor:
    """What a run prints and logs; silent on other ranks than 0."""
    if ranks.is_main():
        about(config, command).write(folder.path)
    trackers, rank = config.tracking.report_to, ranks.rank()
    return Monitor(folder.path, trackers=trackers, config=resolved(config), enabled=ranks.is_main(), rank=rank)
