"""The evaluation that samples what a fine-tuning trains on (dataset.sample_with)."""

from dataclasses import replace

from configs import find
from configs.schema import Config
from runtime.run_folder import RunFolder, run_path
from train import evaluation
from train.setup.prepared import prepared_by

SAMPLES, RESULTS = "samples.jsonl", "results.json"


def to_be_sampled(config: Config) -> Config | None:
    """The eval.py config that must make dataset.optimization_data first: that file is absent, or of an evaluation that
    has not ended. It samples with its own model, or, where it names none, with the one that is trained. None where the
    data is there. ValueError where that config writes another file."""
    dataset = config.dataset
    if not dataset.sample_with:
        return None
    if not isinstance(dataset.optimization_data, str):
        raise ValueError("dataset.sample_with makes one file: name it alone in dataset.optimization_data.")
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
    return None if (made.parent / RESULTS).is_file() and made.is_file() else first


def sample(first: Config) -> None:
    """Runs the evaluation."""
    evaluation.run(first)
    if not (made := RunFolder(run_path(first)).path / SAMPLES).is_file():
        raise ValueError(
            f"{made} is still absent after {first.experiment.project} ran: its folder held another evaluation, and "
            "this one went beside it. Choose another experiment.project there, or delete that folder."
        )
