"""The models that a config names: specs of their checkpoints, then the models themselves."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from configs import find, naming
from configs.engine import TITLES
from configs.schema import Config
from models import DiffusionLM, ValueModel, load_model, load_value_model, lora, parallel
from models.compiled import suits
from models.copies import empty_copy, parallel_copy
from models.fingerprint import fingerprint
from models.folder import weight_files
from models.fused import compile_layers
from models.lora import Adapters
from models.model import mask_id_of
from models.spec import CheckpointSpec, hf_config
from models.tokenizer import read_tokenizer
from models.unread import weight_of
from models.vision.seeing import Part
from runtime import ranks
from sample import Sampler
from train.distributed.kind import engine_kind, shards_weights, world_size
from train.distributed.sharding import require_equal_weights
from train.setup.blocks import Blocks, Kind
from train.setup.doors import Command, reads_reference
from train.setup.process import pick_device

logger = logging.getLogger(__name__)


def spec_of(config: Config, checkpoint: Path | None = None) -> CheckpointSpec:
    """Of `checkpoint` (one of the run's) or model.pretrained_model. ValueError names what is missing, weights too where
    model.random_init draws none, or where model.model_base disagrees."""
    if checkpoint is None and not config.model.pretrained_model:
        raise ValueError("model.pretrained_model is not set: give a checkpoint folder or a hub name (org/model).")
    if checkpoint is not None:
        return _read(checkpoint, config)
    path = find(config.model.pretrained_model)
    with naming("model.pretrained_model"):
        try:
            return _read(path, config)
        except ValueError as error:
            if not config.config or "does not exist" not in str(error):
                raise
            raise ValueError(f"{error} If a recipe makes it: the first lines of {config.config} say how.") from error


def _read(path: Path, config: Config) -> CheckpointSpec:
    spec = CheckpointSpec.read(path, config.model.model_base)
    if not config.model.random_init:
        weight_files((spec.base or spec).folder)
    return spec


def value_spec_of(config: Config, policy: CheckpointSpec) -> CheckpointSpec | None:
    """Of model.value_base_model, None without one. ValueError where it is missing, of another family than the policy or
    of another vocabulary (the two read the same samples), or saved under the same name."""
    if not config.model.value_base_model:
        return None
    if config.model.optimized_value_name == config.model.optimized_name:
        raise ValueError(
            f"model.optimized_value_name and model.optimized_name are both {config.model.optimized_name!r}: "
            "policy and value model need a name each under ckpt/."
        )
    path = config.model.value_base_model
    with naming("model.value_base_model"):
        spec = _read(find(path), config)
    _require_same_words(f"model.value_base_model={path}", policy, spec, "the value model reads the policy's tokens")
    return spec


def reference_spec_of(config: Config, policy: CheckpointSpec, command: Command = "rl") -> CheckpointSpec | None:
    """Of model.reference_model, None without one or where nothing reads it. ValueError where it is missing, of another
    family than the policy, or of another vocabulary: it scores the policy's ids in the policy's states."""
    path = config.model.reference_model
    if not path or not reads_reference(config.training, command):
        return None
    with naming("model.reference_model"):
        spec = _read(find(path), config)
    named = f"model.reference_model={path}"
    _require_same_words(named, policy, spec, "a reference scores the policy's tokens")
    if (sizes := spec.family.picture_sizes) is not None and (cut := sizes(spec.raw).cut) != sizes(policy.raw).cut:
        raise ValueError(
            f"{named} cuts pictures otherwise than model.pretrained_model: {cut}, not {sizes(policy.raw).cut}; a "
            "reference scores the policy's prompts: give one whose pictures have the same positions."
        )
    return spec


def _require_same_words(named: str, policy: CheckpointSpec, other: CheckpointSpec, why: str) -> None:
    """ValueError where another checkpoint is of another family than the policy, or of another vocabulary. named: its
    key and path."""
    if other.family != policy.family:
        raise ValueError(
            f"{named} is a {other.family.name} checkpoint, model.pretrained_model a {policy.family.name} one; {why}: "
            "give one of the same family."
        )
    if difference := _other_words(policy, other):
        raise ValueError(
            f"{named} has another vocabulary than model.pretrained_model: {difference}; {why}: give one of the same "
            "vocabulary."
        )


def _other_words(policy: CheckpointSpec, other: CheckpointSpec) -> str:
    """How the vocabularies of two checkpoints of one family differ; "" where they do not."""
    sizes = [int(spec.raw["vocab_size"]) for spec in (policy, other)]
    if sizes[0] != sizes[1]:
        return f"{sizes[1]:,} ids against {sizes[0]:,}"
    read = [read_tokenizer((spec.base or spec).folder, spec.family) for spec in (policy, other)]
    masks = [mask_id_of(spec, tokenizer) for spec, tokenizer in zip((policy, other), read, strict=True)]
    if masks[0] != masks[1]:
        return f"its mask id is {masks[1]}, not {masks[0]}"
    mine, theirs = ({} if tokenizer is None else tokenizer.get_vocab() for tokenizer in read)
    unequal = sorted(token for token in mine.keys() & theirs.keys() if mine[token] != theirs[token])
    unequal += sorted(mine.keys() ^ theirs.keys()) if mine and theirs else []
    return f"token {unequal[0]!r} is {theirs.get(unequal[0])} in it, not {mine.get(unequal[0])}" if unequal else ""


@dataclass(frozen=True)
class RunModels:
    """The models of a run of `kind` before any weight: policy, value model and reference (None without a checkpoint of
    its own), and their blocks."""

    kind: Kind
    policy: CheckpointSpec
    blocks: Blocks
    value: CheckpointSpec | None = None
    reference: CheckpointSpec | None = None

    @staticmethod
    def of(config: Config, policy: CheckpointSpec, kind: Kind = "rl") -> "RunModels":
        """ValueError as from `Blocks.of`, `value_spec_of`, `reference_spec_of` and `trained_vision`."""
        blocks = Blocks.of(config, policy, kind)
        if kind != "eval":
            trained_vision(config, policy)
        if kind == "eval":
            return RunModels(kind, policy, blocks)
        if kind == "sft":
            return RunModels(kind, policy, blocks, reference=reference_spec_of(config, policy, "sft"))
        return RunModels(kind, policy, blocks, value_spec_of(config, policy), reference_spec_of(config, policy))


def make_model(
    config: Config,
    checkpoint: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    new_adapters: bool = True,
    adapters_dtype: torch.dtype | None = None,
    unread: bool = False,
) -> DiffusionLM:
    """The model to train or evaluate, from `checkpoint` (one of the run's) or model.pretrained_model, on the run's
    device where no other is given; with the lora section's adapters where it has none and new_adapters is set.
    adapters_dtype: default that of the base. unread: as `load_model`."""
    seed = config.training.seed if config.model.random_init and checkpoint is None else None
    spec, device = spec_of(config, checkpoint), device or pick_device(config.model.device)
    model = load_model(
        *(spec, dtype, device),
        random_init_seed=seed,
        adapters_dtype=adapters_dtype,
        image_tokenizer=image_tokenizer_of(config, spec),
        unread=unread,
    )
    adapters = adapters_of(config, spec) if new_adapters else None
    if adapters is not None and model.adapters is None:
        if config.model.random_init:
            raise ValueError("lora.rank: adapters need a base on disk; model.random_init draws one. Save it first.")
        model.add_adapters(adapters, spec.folder.resolve(), config.training.seed, adapters_dtype)
    if model.adapters is not None and ranks.is_main():  # which writes the checkpoints
        model.base_fingerprint = fingerprint((spec.base or spec).folder)
    if config.training.gradient_checkpointing_enable:
        model.enable_gradient_checkpointing()
    return model


def check_team(config: Config, spec: CheckpointSpec, processes: int) -> None:
    """ValueError where rollout.tensor_parallel_size of the run's `processes` cannot sample the model together."""
    size, key = config.rollout.tensor_parallel_size, "rollout.tensor_parallel_size"
    if size == 1:
        return
    nodes = config.experiment.num_node or 1
    if processes // nodes % size:
        raise ValueError(
            f"{key}={size}: {processes // nodes} processes of a node do not divide into teams of {size}; choose a "
            f"divisor ({key}=1 samples on whole models). To plan for other machines: dry_run=true "
            f"experiment.processes={size} experiment.gpu_memory_gib=79."
        )
    if adapters_of(config, spec) is not None:
        raise ValueError(f"{key}={size}: adapters are sampled on whole models; set it to 1, or merge them first.")
    if spec.family.noise == "uniform":
        raise ValueError(f"{key}={size}: {spec.family.name} is sampled on whole models; set it to 1.")
    parallel.check_team(hf_config(spec.family, spec.raw), size, key)


def copy_to_sample(config: Config, model: DiffusionLM, dtype: torch.dtype, device: torch.device) -> DiffusionLM | None:
    """What samples apart from the trained model, its weights still to come: this rank's part of a model where teams
    sample, a whole one where trained weights are sharded; None where they can be shared or copied."""
    team = ranks.team(config.rollout.tensor_parallel_size)
    if team is not None:
        return parallel_copy(model, team, dtype, device)
    return empty_copy(model, dtype, device) if shards_weights(config) else None


def make_sampled_model(config: Config, dtype: torch.dtype) -> DiffusionLM:
    """The model of an evaluation, on the run's device: whole, or this rank's part of it where teams sample. Ranks hold
    the same weights (RuntimeError otherwise)."""
    team = ranks.team(config.rollout.tensor_parallel_size)
    host = torch.device("cpu") if team is not None else None
    model = make_model(config, dtype=dtype, device=host, new_adapters=False, unread=team is not None)
    require_equal_weights(model, "model")
    if team is None:
        return model
    part = parallel_copy(model, team, dtype, pick_device(config.model.device))
    Sampler(part).update_weights((name, weight_of(parameter)) for name, parameter in model.named_parameters())
    return part


def image_tokenizer_of(config: Config, spec: CheckpointSpec) -> str | None:
    """model.vq_model_path where the model's family has pictures from an image tokenizer; a warning where it has not."""
    if not (given := config.model.vq_model_path):
        return None
    if spec.family.vision is None or spec.family.trains_vision:
        logger.warning(
            "model.vq_model_path=%s has no effect: a %s model needs no image tokenizer", given, spec.family.name
        )
        return None
    return str(find(given))


def make_trained_model(config: Config, precision: str, checkpoint: Path | None = None) -> DiffusionLM:
    """The model that an engine is to train, in fp32, where the engine then makes what it computes with. Under bf16 the
    frozen base of adapters is bf16 at once. Its layers are compiled where that suits the device, but under ZeRO-3,
    which gathers weights inside them."""
    frozen = precision == "bf16" and adapters_of(config, spec_of(config, checkpoint)) is not None
    dtype = torch.bfloat16 if frozen else torch.float32
    sharded, device = shards_weights(config), trained_model_device(config)
    model = make_model(config, checkpoint, dtype, device, adapters_dtype=torch.float32, unread=sharded)
    model.train_vision(trained_vision(config, model.spec))
    if suits(pick_device(config.model.device)) and engine_kind(config) != "zero3":
        compile_layers(model)
    return model


def trained_vision(config: Config, spec: CheckpointSpec) -> Part:
    """The part of the model's vision that is trained. ValueError where it has none, where adapters alone are saved, and
    where an engine needs the same forward passes on all ranks, which pictures are not."""
    part = config.training.train_vision
    if part == "false":
        return None
    given = f"training.train_vision={part}"
    if not spec.family.trains_vision:
        raise ValueError(f"{given}: {spec.family.name} has no vision in its checkpoint that could be trained.")
    if adapters_of(config, spec) is not None:
        raise ValueError(f"{given} beside adapters, which are all that is saved: leave one of them out.")
    if (kind := engine_kind(config)) != "ddp" and world_size(config) > 1:
        raise ValueError(
            f"{given} under {TITLES[kind]}: ranks have pictures in different passes, and this engine needs the same "
            "ones. Take a _ddp file of accelerate_configs/."
        )
    return "all" if part == "all" else "projector"


def adapters_of(config: Config, spec: CheckpointSpec) -> Adapters | None:
    """The adapters that a model is trained with: the checkpoint's, else the lora section's; None without. ValueError
    where there are both and they differ."""
    section, found = config.lora, spec.adapters
    configured = Adapters(section.rank, section.alpha, section.dropout, tuple(sorted(section.target_modules)))
    if not section.rank:
        return found
    if found is not None and configured != replace(found, targets=configured.targets and found.targets):
        raise ValueError(
            f"lora.*: {spec.folder} holds adapters already ({found}), and the lora section has others ({configured}). "
            "Leave the section out to train those on, or merge them first: python models/merge.py"
        )
    return found or configured


class _FirstAdapters(torch.nn.Module):
    """The model that a run began with, in the memory of the trained one: its base, with a copy of the adapters that the
    run began from, {parameter of the body: weight}; empty where it began without any."""

    def __init__(self, model: DiffusionLM, first: Mapping[str, torch.Tensor], trained: torch.nn.Module):
        super().__init__()
        self.adapted = [model, trained]  # in a list: not submodules, whose weights would be this one's too
        own = dict(model.model.named_parameters())
        self.first = {f"model.{name}": weight.to(own[name]) for name, weight in first.items()}

    def forward(self, *inputs: torch.Tensor, **more: Any) -> torch.Tensor:
        model, trained = self.adapted
        training = model.training
        model.eval()  # no dropout
        try:
            if self.first:
                return torch.func.functional_call(model, self.first, inputs, more)
            with lora.without(model.get_submodule("model")):
                return trained(*inputs, **more)
        finally:
            model.train(training)


def frozen_reference(
    config: Config,
    model: DiffusionLM,
    precision: str,
    trained: torch.nn.Module | None = None,
    command: Command = "rl",
) -> torch.nn.Module | None:
    """What gives the log-probabilities of model.reference_model, or of the model that the run began with, where the
    objective reads them. With adapters the latter is the base and, where model.pretrained_model has some, a copy of
    those. trained: what an engine made of the model, default the model itself."""
    if not reads_reference(config.training, command):
        return None
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if (spec := reference_spec_of(config, model.spec, command)) is not None:
        tokenizer = image_tokenizer_of(config, spec)
        other = load_model(spec, dtype, pick_device(config.model.device), image_tokenizer=tokenizer)
        other.see_apart()
        return other.requires_grad_(False)
    if model.adapters is not None:
        spec = spec_of(config)
        first = lora.weights_of(spec.folder, model.model) if spec.adapters else {}
        return _FirstAdapters(model, first, trained or model)
    first_model = make_model(config, dtype=dtype)
    first_model.train_vision(trained_vision(config, first_model.spec))  # else it saw what the trained one sees
    return first_model.requires_grad_(False)


def trained_model_device(config: Config) -> torch.device:
    """Where a model to be trained is loaded: the host, where its weights stay unread until ZeRO-3 or FSDP2 takes the
    ranks' shards of them, one after another."""
    return torch.device("cpu") if shards_weights(config) else pick_device(config.model.device)


def make_value_model(config: Config, policy: CheckpointSpec, checkpoint: Path | None = None) -> ValueModel | None:
    """The value model from `checkpoint` (its folder in one of the run's) or model.value_base_model, where it is
    trained from; None when the config names none. policy: of the model that it values."""
    base = value_spec_of(config, policy)
    if base is None:
        return None
    seed = config.training.seed if config.model.random_init and checkpoint is None else None
    spec = base if checkpoint is None else CheckpointSpec.read(checkpoint, config.model.model_base)
    sharded, device = shards_weights(config), trained_model_device(config)
    model = load_value_model(spec, "float32", device, random_init_seed=seed, unread=sharded)
    if config.training.gradient_checkpointing_enable:
        model.base.enable_gradient_checkpointing()
    return model
