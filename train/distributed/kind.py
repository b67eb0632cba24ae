"""A config's engine, its number of processes, and whether it can train the config's model."""

import os
from importlib.util import find_spec
from pathlib import Path

from configs.engine import STAGES, TITLES, Kind, check_offload, engine_file
from configs.schema import Config
from models import lora
from runtime import ranks
from runtime.devices import gpu_count


def engine_kind(config: Config) -> Kind:
    """From experiment.deepspeed_file, or from the config file of the `accelerate launch` that started this process.
    ValueError where the two disagree, or where accelerate's is not supported."""
    file, launched = engine_file(config.experiment.deepspeed_file), _launched_kind()
    if file is None:
        return launched or "ddp"
    if launched not in (None, file.kind):
        raise ValueError(
            f"experiment.deepspeed_file={file.name} is {TITLES[file.kind]}, but accelerate launch was given "
            f"{TITLES[launched]}: give both one file, or leave experiment.deepspeed_file out."
        )
    return file.kind


def zero_stage(config: Config) -> int:
    """What is sharded, in ZeRO's count: nothing (0), gradients and optimizer (2), or weights too (3, and FSDP2).
    ValueError as `engine_kind`."""
    return STAGES[engine_kind(config)]


def _launched_kind() -> Kind | None:
    """The ZeRO stage that `accelerate launch` was given; None without one."""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if stage is None:
        return None
    if _launched("CONFIG_FILE") != "none":
        raise ValueError(
            f"accelerate's config sets deepspeed_config_file={_launched('CONFIG_FILE')}, which is not supported: take "
            "a config of accelerate_configs/."
        )
    check_offload(_launched("OFFLOAD_OPTIMIZER_DEVICE"), _launched("OFFLOAD_PARAM_DEVICE"), "accelerate's config")
    if stage not in ("2", "3"):
        raise ValueError(f"accelerate's config has ZeRO stage {stage}; there are 2 and 3.")
    return "zero2" if stage == "2" else "zero3"


def _launched(name: str) -> str:
    """A setting of DeepSpeed that `accelerate launch` was given."""
    return os.environ.get(f"ACCELERATE_DEEPSPEED_{name}", "none")


def offloads(config: Config) -> bool:
    """Whether masters, gradients and optimizer state lie in host memory: experiment.deepspeed_file or the file of
    `accelerate launch` says so, and there are several processes."""
    file = engine_file(config.experiment.deepspeed_file)
    asked = _launched("OFFLOAD_OPTIMIZER_DEVICE") == "cpu" if file is None else file.offload
    return asked and world_size(config) > 1


def world_size(config: Config) -> int:
    """Processes of the run: those of this job, or those that the command would start on this machine and its like."""
    if ranks.world_size() > 1:
        return ranks.world_size()
    file = engine_file(config.experiment.deepspeed_file)
    here = max(1, gpu_count() if config.model.device != "cpu" else 0)
    if file is not None:
        here = file.processes_per_node if file.cpu else min(here, file.processes_per_node)
    return (config.experiment.processes or here) * (config.experiment.num_node or 1)


def check_engine(config: Config, folder: Path | None) -> None:
    """ValueError where the engine cannot train the config's model. folder: the model's; None where a first run
    makes it."""
    kind: Kind = engine_kind(config) if world_size(config) > 1 else "ddp"
    training = config.training
    if kind.startswith("zero") and find_spec("deepspeed") is None:
        raise ValueError(
            f"{TITLES[kind]} needs the package deepspeed, which is not installed: DS_BUILD_OPS=0 pip install -c "
            "requirements-extras.txt deepspeed ninja setuptools. Or leave experiment.deepspeed_file out: every process "
            "then holds the whole model."
        )
    if training.ema_decay and kind != "ddp":
        raise ValueError(
            f"training.ema_decay={training.ema_decay:g} under {TITLES[kind]}: no process has the whole fp32 "
            "weights whose mean it is. Take a _ddp file of accelerate_configs/, or leave one of the two out."
        )
    adapted = folder is not None and (folder / lora.CONFIG).is_file()
    compares = {"kl_to=reference": training.kl_to == "reference", "sft_objective=dpo": training.sft_objective == "dpo"}
    given = next((key for key, is_set in compares.items() if is_set), None)
    if STAGES[kind] == 3 and adapted and given and not config.model.reference_model:
        raise ValueError(
            f"training.{given} under {TITLES[kind]}, and model.pretrained_model="
            f"{config.model.pretrained_model} holds adapters: the reference is those on a whole base, which no rank "
            "has. Merge them first (python models/merge.py), or take a _ddp or _zero2 file."
        )


def shards_weights(config: Config) -> bool:
    """Whether no rank holds the whole trained model: ZeRO-3 or FSDP2 on several ranks."""
    return zero_stage(config) == 3 and ranks.world_size() > 1


def engine_line(config: Config) -> str:
    """The engine, for people."""
    kind, world = engine_kind(config), ranks.world_size()
    if world == 1:
        return "one process" + (f" ({TITLES[kind]} has nothing to shard)" if kind != "ddp" else "")
    offloaded = ", optimizer in host memory" if offloads(config) else ""
    return f"{TITLES[kind]} over {world} processes{offloaded}" if kind != "ddp" else f"DDP, {world} processes"
