"""The evaluation that samples what a fine-tuning trains on (dataset.sample_with)."""

from dataclasses import replace
from pathlib import Path

from configs import find
from configs.schema import Config
from models.spec import CheckpointSpec
from runtime import run_config
from runtime.run_folder import RunFolder, run_path
from train import evaluation
from train.algorithm.masking import Method
from train.setup.blocks import Blocks
from train.setup.models import spec_of
from train.setup.prepared import prepared_by
from train.setup.sources import settings_of

SAMPLES, RESULTS = "samples.jsonl", "results.json"


def to_be_sampled(config: Config) -> Config | None:
    """The eval.py config that must make dataset.optimization_data first: that file is absent, or of an evaluation that
    has not ended. It samples with its own model, or, where it names none, with the one that is trained. None where the
    data is there. ValueError where that config writes another file, or where its folder holds what another evaluation
    made."""
    dataset = config.dataset
    if not dataset.sample_with:
        return None
    if not isinstance(dataset.optimization_data, str):
        raise ValueError(
            "dataset.sample_with makes one file: name it alone in dataset.optimization_data, or "
            "set dataset.sample_with=null to train files that are there."
        )
    if not find(dataset.sample_with).is_file():
        raise ValueError(f"dataset.sample_with: {dataset.sample_with} does not exist.")
    first = prepared_by(dataset.sample_with, "eval", config)
    if not first.model.pretrained_model:
        sampled = replace(
            first.model, pretrained_model=config.model.pretrained_model, model_base=config.model.model_base
        )
        first = replace(first, model=sampled)
    given, made = find(dataset.optimization_data), RunFolder(run_path(first)).path / SAMPLES
    if given.resolve() != made.resolve():
        if given.is_file():
            return None
        raise ValueError(
            f"dataset.optimization_data={dataset.optimization_data} is absent, and dataset.sample_with="
            f"{dataset.sample_with} would write {made}: name that file, or one that is there."
        )
    is_same = _is_as_made(first, made.parent, dataset.sample_with)
    return None if is_same and (made.parent / RESULTS).is_file() and made.is_file() else first


def _is_as_made(first: Config, folder: Path, file: str) -> bool:
    """Whether nothing in the evaluation's folder is of other settings. ValueError by name for what is, unless
    experiment.overwrite there empties the folder: the evaluation would go beside it (NAME-2), or its responses be
    trained in place of this one's."""
    if not (folder / "config.yaml").is_file():
        return True
    settings = settings_of(evaluation.two_models(first), "eval")
    refused = run_config.changes(folder / "config.yaml", settings).refused
    if refused and not first.experiment.overwrite:
        raise ValueError(
            "\n".join([f"dataset.sample_with={file}: {folder} holds an evaluation of other settings:", *refused])
            + f"\nChoose another experiment.project in {file}, or delete that folder to sample again"
            + (", or set dataset.sample_with=null to train what is there." if (folder / SAMPLES).is_file() else ".")
        )
    return not refused


def check_traces(first: Config, config: Config, spec: CheckpointSpec, method: Method) -> None:
    """ValueError where what the evaluation is to sample could not be trained."""
    file = config.dataset.sample_with
    if not first.rollout.output_unmasking_history:
        raise ValueError(
            f"dataset.sample_with={file}: rollout.output_unmasking_history=false leaves the denoising steps out, which "
            "are what is trained: leave it out there."
        )
    if not method.as_sampled or spec.family.attention != "block":
        return
    trained, sampled = Blocks.of(config, spec, "sft").trained, Blocks.of(first, spec_of(first), "eval").sampled
    if other := {*sampled} - {trained}:
        raise ValueError(
            f"dataset.sample_with={file} samples blocks of {', '.join(map(str, sorted(other)))}, and "
            f"training.block_size is {trained}: steps are replayed in blocks of the same size. Set it to that, or "
            "rollout.block_size there."
        )


def sample(first: Config) -> None:
    """Runs the evaluation."""
    evaluation.run(first)
    if not (made := RunFolder(run_path(first)).path / SAMPLES).is_file():
        raise ValueError(
            f"{made} is still absent after {first.experiment.project} ran: its folder held another evaluation, and "
            "this one went beside it. Choose another experiment.project there, or delete that folder."
        )
