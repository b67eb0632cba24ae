"""The loss of fine-tuning on examples that it does not train on."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from configs.schema import Config, TrainingConfig
from configs.sets import described
from data.tasks import Example
from data.traces import task_of
from models import DiffusionLM
from runtime.monitor import Monitor
from train.algorithm.early import rounds_without_gain
from train.algorithm.masking import Method
from train.algorithm.replay import TrainingSample
from train.distributed.sharding import rows_per_update
from train.learner.tuning import Learning
from train.setup.examples import TokenizedExample, make_samples, responses_of, see, tokenised
from train.setup.pictures import Eyes

KEY = "dataset.validation_dataset"
TURN = 2**32 - 1
"""The pass whose masks held-out examples have at every step: no run comes there."""


MORE_IS_BETTER = ("margin", "pair_accuracy")
"""Figures of held-out pairs that rise."""


def nothing_left(training: TrainingConfig, examples: Sequence[TokenizedExample]) -> str:
    """Why no sample is left of examples, or of pairs, that are drawn from these. A text always has a token to train."""
    reasons = {"no pictures to be used" if example.images else "no token to train" for example in examples}
    of_which = "its examples have" if responses_of(training) == 1 else "of each of its pairs a response has"
    return f"{of_which} {', or '.join(sorted(reasons, reverse=True))}"


def split_off(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and those held out: of each set the same share of its tasks, at least one, drawn by
    seed. Examples of one task, or with one prompt, stay together. ValueError where a set would have none left."""
    if share == 0.0:
        return list(examples), []
    tasks = [_task(example) for example in examples]
    labels = sorted({example.of for example in examples})
    held: set[Hashable] = set()
    for which, label in enumerate(labels):
        of_set = [*dict.fromkeys(task for task, example in zip(tasks, examples, strict=True) if example.of == label)]
        order = np.random.default_rng([seed, TURN, which]).permutation(len(of_set))
        held.update(of_set[i] for i in order[: max(1, round(share * len(of_set)))])
    kept = [example for task, example in zip(tasks, examples, strict=True) if task not in held]
    for label in labels:
        if not any(example.of == label for example in kept):
            count = sum(example.of == label for example in examples)
            raise ValueError(
                f"dataset.validation_split={share:g} holds out all {count} examples{f' of {label}' if label else ''}: "
                "lower it, or leave it out."
            )
    return kept, [example for task, example in zip(tasks, examples, strict=True) if task in held]


def _task(example: Example) -> Hashable:
    """What examples share that ask the same: the task of a sampled response, else the prompt, with its pictures."""
    trace = example.trace
    if trace is None:
        return example.prompt, tuple(example.turns), tuple(example.images)
    return (example.of, *task_of(trace)) if trace.get("task") is not None else tuple(trace["prompt_ids"])


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
            key = KEY if self.config.dataset.validation_dataset else "dataset.optimization_data"
            return tokenised(examples, model, self.config, method, key) if examples else []
        except ValueError as error:
            raise ValueError(f"held-out examples: {error}") from error

    def due(self, step: int, total: int) -> bool:
        """Whether they are to be measured after update `step` and were not yet."""
        experiment = self.config.experiment
        regular = step % experiment.eval_every == 0 or step == total
        return bool(self.samples) and step not in self.found and (experiment.eval_first if step == 0 else regular)

    def measure(self, learning: Learning, step: int, monitor: Monitor) -> None:
        """Their figures after update `step`, logged as validation/...; none where no picture can be used."""
        if (figures := learning.figures(self.portions())) is None:
            why = nothing_left(self.config.training, self.samples)
            monitor.event(f"held out, after update {step}: nothing is measured, {why}")
            return
        self.found[step] = figures
        monitor.evaluation(step, figures, under="validation", quiet=True)
        monitor.event(f"held out, after update {step}: loss {figures['loss']:.4f}, nll {figures['nll']:.4f}")

    def portions(self) -> Iterator[tuple[list[str], list[TrainingSample]]]:
        """The training samples, with the label of the set of each: of all examples together, or, where they have
        pictures, of those of one update, whose encoded pictures alone are kept at a time."""
        training: TrainingConfig = self.config.training
        window = max(len(sample.response_ids) for sample in self.samples)
        in_parts, size = any(sample.images for sample in self.samples), len(self.samples)
        size = responses_of(training) * rows_per_update(training) if in_parts else size
        for start in range(0, len(self.samples), size):
            portion = [replace(sample, turn=TURN) for sample in self.samples[start : start + size]]
            of: list[str] = []
            made: list[TrainingSample] = []
            for example in see(portion, self.eyes):
                rows = make_samples(example, self.model, training, self.method, example.turn, window)
                made, of = made + rows, of + [example.of] * len(rows)
            if made:
                yield of, made

    @property
    def _metric(self) -> str:
        name = self.config.experiment.early_stopping_metric
        return "loss" if name == "auto" else name

    @property
    def no_gain(self) -> str:
        """That a run stopped early, in words."""
        return f"the held-out {self._metric} {'rises' if self._metric in MORE_IS_BETTER else 'falls'} no more"

    @property
    def is_stale(self) -> bool:
        """Whether experiment.early_stopping_metric got no better at experiment.early_stopping measurements in a row."""
        experiment = self.config.experiment
        if experiment.early_stopping is None or not self.samples:
            return False
        values, lower = (
            [self.found[step][self._metric] for step in sorted(self.found)],
            self._metric not in MORE_IS_BETTER,
        )
        return rounds_without_gain(values, experiment.early_stopping_gain, lower=lower) >= experiment.early_stopping


def described_split(config: Config, held_out: Sequence[object]) -> dict[str, str]:
    """The banner's line about what is held out."""
    if not held_out:
        return {}
    dataset = config.dataset
    source = described(dataset.validation_dataset) or f"{dataset.validation_split:g} of them"
    return {"held out": f"{source}: {len(held_out):,}, measured every {config.experiment.eval_every} updates"}
