"""The loss of fine-tuning on examples that it does not train on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from configs.schema import Config, TrainingConfig
from configs.sets import described
from data.tasks import Example
from models import DiffusionLM
from runtime.monitor import Monitor
from train.algorithm.early import rounds_without_gain
from train.algorithm.masking import Method
from train.algorithm.replay import TrainingSample
from train.learner.updater import Updater
from train.setup.examples import TokenizedExample, make_samples, see, tokenise
from train.setup.pictures import Eyes

KEY = "dataset.validation_dataset"
TURN = 2**32 - 1
"""The pass whose masks held-out examples have at every step: no run comes there."""
Metrics = dict[str, float]


def split_off(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and those held out: of each set the same share, at least one, drawn by seed. ValueError
    where a set would have none left."""
    if share == 0.0:
        return list(examples), []
    held: set[int] = set()
    for which, label in enumerate(sorted({example.of for example in examples})):
        places = [i for i, example in enumerate(examples) if example.of == label]
        count = max(1, round(share * len(places)))
        if count == len(places):
            raise ValueError(
                f"dataset.validation_split={share:g} holds out all {count} examples{f' of {label}' if label else ''}: "
                "lower it, or leave it out."
            )
        held.update(np.random.default_rng([seed, TURN, which]).permutation(places)[:count].tolist())
    kept = [example for i, example in enumerate(examples) if i not in held]
    return kept, [examples[i] for i in sorted(held)]


class HeldOut:
    """Held-out examples of a run: what they lose, and whether that still falls. Their masks are the same at every step,
    so that differences are the model's. found: update -> figures, in order of updates."""

    def __init__(
        self,
        examples: Sequence[Example],
        model: DiffusionLM,
        config: Config,
        method: Method,
        found: Mapping[int, Mapping[str, float]],
    ):
        self.config, self.found = config, {int(step): dict(metrics) for step, metrics in found.items()}
        self.samples = self._tokenised(examples, model, method)
        self.eyes, self.model, self.method = Eyes.of(config, model), model, method

    def _tokenised(self, examples: Sequence[Example], model: DiffusionLM, method: Method) -> list[TokenizedExample]:
        try:
            return tokenise(examples, model, self.config, method) if examples else []
        except ValueError as error:
            raise ValueError(f"held-out examples: {error}") from error

    def due(self, step: int, total: int) -> bool:
        """Whether they are to be measured after update `step` and were not yet."""
        experiment = self.config.experiment
        regular = step % experiment.eval_every == 0 or step == total
        return bool(self.samples) and step not in self.found and (experiment.eval_first if step == 0 else regular)

    def measure(self, updater: Updater, step: int, monitor: Monitor) -> None:
        """Their figures after update `step`, logged as validation/..."""
        self.found[step] = figures = self._figures(updater)
        monitor.evaluation(step, figures, under="validation", quiet=True)
        monitor.event(f"held out, after update {step}: loss {figures['loss']:.4f}, nll {figures['nll']:.4f}")

    def _figures(self, updater: Updater) -> Metrics:
        """loss: mean of -log p over masked tokens under training.loss_weight; nll: without weights, of each set too."""
        training: TrainingConfig = self.config.training
        examples = see([replace(sample, turn=TURN) for sample in self.samples], self.eyes)
        window = max(len(sample.response_ids) for sample in self.samples)
        of: list[str] = []
        made: list[TrainingSample] = []
        for example in examples:
            rows = make_samples(example, self.model, training, self.method, example.turn, window)
            made, of = made + rows, of + [example.of] * len(rows)
        logp = updater.outputs(made, range(len(made)))
        weighted = [float((row * sample.weight).sum()) for row, sample in zip(logp, made, strict=True)]
        figures = {"loss": -sum(weighted) / max(1e-9, sum(float(sample.weight.sum()) for sample in made))}
        for label in ["", *sorted({*of} - {""})]:
            rows_of = [row for row, its in zip(logp, of, strict=True) if label in ("", its)]
            mean = -sum(float(row.sum()) for row in rows_of) / max(1, sum(len(row) for row in rows_of))
            figures[f"nll({label})" if label else "nll"] = mean
        return figures

    @property
    def is_stale(self) -> bool:
        """Whether the loss has not fallen at experiment.early_stopping measurements in a row."""
        experiment = self.config.experiment
        if experiment.early_stopping is None or not self.samples:
            return False
        name = "loss" if experiment.early_stopping_metric == "auto" else experiment.early_stopping_metric
        values = [self.found[step][name] for step in sorted(self.found)]
        return rounds_without_gain(values, experiment.early_stopping_gain, lower=True) >= experiment.early_stopping


def described_split(config: Config, held_out: Sequence[object]) -> dict[str, str]:
    """The banner's line about what is held out."""
    if not held_out:
        return {}
    dataset = config.dataset
    source = described(dataset.validation_dataset) or f"{dataset.validation_split:g} of them"
    return {"held out": f"{source}: {len(held_out):,}, measured every {config.experiment.eval_every} updates"}
