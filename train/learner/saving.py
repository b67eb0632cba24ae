"""The checkpoints of one run: what it resumes from, what it saves, the links beside them. RL and SFT share it."""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from configs.schema import Config
from models import DiffusionLM, ValueModel
from models.fingerprint import require_base
from models.spec import CheckpointSpec
from models.unread import is_unread, leave_unread
from runtime import ranks
from runtime.files import file_digest
from runtime.run_folder import RunFolder
from runtime.steps import step_folder, step_folders, step_of
from train.distributed.sharding import require_equal_weights, rows_per_update
from train.learner.card import Card
from train.learner.checkpoint import (
    RL,
    VALUE,
    Contents,
    Listed,
    point_to,
    point_to_best,
    problem_of,
    prune_checkpoints,
    read_state,
    restore_random,
    save_checkpoint,
    starting_checkpoint,
)
from train.learner.start import first_start, keep_start
from train.learner.updater import Updater

logger = logging.getLogger(__name__)

WEIGHTS = "weights"
"""Of the trainer's state: the trained weights in fp32, where the checkpoint's are rounded."""
HALF = "half"
"""Of the trainer's state: whether the weights that learned from these masters were bf16."""


@dataclass(frozen=True)
class Progress:
    """Steps done, and the seconds that the run took for them, over all its starts."""

    step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Trained:
    """A model under training as checkpoints hold it. key: its updater's state; link: its name under ckpt/."""

    model: DiffusionLM | ValueModel
    updater: Updater
    link: str
    key: str = "updater"


def _exact_weights(model: DiffusionLM | ValueModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().cpu() for name, weight in model.named_parameters() if weight.requires_grad}


class RunCheckpoints:
    """Finds what the run resumes from, restores it, and saves. Every rank calls every method; rank 0 alone writes.

    start: the checkpoint that the run begins with, None for a new one. saved: its state, left on disk until it is read.
    progress: where the run stands there. ValueError where experiment.resume forbids it.
    """

    def __init__(self, folder: RunFolder, config: Config, command: str):
        experiment = config.experiment
        with_value = command == RL and bool(config.model.value_base_model)
        self.folder, self.command, self.keep_last = folder.checkpoints, command, experiment.keep_last
        self.card = Card.of(config, command) if ranks.is_main() else None
        self.start = ranks.on_main(self._find_start, folder, experiment.resume, with_value)
        if self.start is not None:
            ranks.on_main(require_base, CheckpointSpec.read(self.start, config.model.model_base))
        self.saved: Mapping[str, Any] = read_state(self.start) if self.start is not None else {}
        self.progress = Progress(self.saved.get("step", 0), self.saved.get("seconds", 0.0))
        self.resumed = self.start is not None and self.start.parent == self.folder
        self.logs = folder.logs
        self.dtype = torch.bfloat16 if experiment.save_dtype == "bf16" else None
        if self.resumed:
            ranks.on_main(self._check_logs)
        self.average_link = f"{config.model.optimized_name}_ema" if config.training.ema_decay else None
        self.trained: tuple[Trained, ...] = ()
        self._damaged: set[int] = set()
        self._began = time.perf_counter() - self.progress.seconds
        self._rows_per_update = self.saved.get("rows_per_update") if self.resumed else None

    def _find_start(self, folder: RunFolder, resume: str, with_value: bool) -> Path | None:
        if not step_folders(self.folder):
            resume = first_start(folder, resume)
        start = starting_checkpoint(self.folder, resume, self.command, with_value)
        if start is not None and start.parent != self.folder:
            keep_start(folder, start)
        return start

    def resumed_config(self, config: Config) -> Config:
        """The config with updates of the size that the run began with, whatever the number of ranks is now."""
        rows = config.training.rows_per_update or self._rows_per_update
        config = replace(config, training=replace(config.training, rows_per_update=rows))
        self._rows_per_update = rows_per_update(config.training)
        return config

    def steps_in_all(self, steps: int, key: str) -> int:
        """Steps of the run: `steps`, the value of `key`, or those that are done where they are more, with a warning."""
        done = self.progress.step
        if steps < done:
            logger.warning("%s=%d, and %d are done: the run is finished, and stays as it is", key, steps, done)
        return max(steps, done)

    @property
    def seconds(self) -> float:
        """What the run took so far, over all its starts."""
        return time.perf_counter() - self._began

    @property
    def model(self) -> Path:
        """Where the newest model is: the link to it, or its checkpoint where something else has the link's name."""
        link = self.folder / self.trained[0].link
        return link if link.is_symlink() else step_folder(self.folder, self.progress.step)

    @property
    def value_start(self) -> Path | None:
        """The value model's folder of `start`."""
        return self.start / VALUE if self.start is not None else None

    @torch.no_grad()
    def restore_weights(self, model: DiffusionLM | ValueModel, key: str) -> None:
        """Gives a model that was loaded from `start` the fp32 weights that experiment.save_dtype=bf16 rounded there.
        key: of its updater."""
        exact = self.saved.get(WEIGHTS, {}).get(key, {})
        for name, parameter in model.named_parameters():
            if name in exact and is_unread(parameter):
                leave_unread(parameter, partial(exact[name].to, parameter.dtype))
            elif name in exact:
                parameter.copy_(exact[name])

    def restore(self, *trained: Trained) -> None:
        """Puts the updaters and torch's random numbers where the checkpoint was. trained: the policy first, then the
        value model if there is one; they are what `save` writes."""
        self.trained = trained
        if self.start is None:
            return
        for each in trained:
            each.updater.load_state_dict(self.saved[each.key])
        if trained[0].updater.half and not self.saved.get(HALF, False):
            logger.warning(
                "checkpoint %s is not of a run whose weights work in bf16 (docs/training.md, Precision): its fp32 "
                "weights are the masters from here on",
                self.start,
            )
        restore_random(self.saved)
        self.saved = {}
        if self.resumed:
            ranks.on_main(self._point_to, self.start)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Writes the checkpoint of `step`; `state`: what the loop needs besides models and updaters."""
        self.progress = Progress(step, self.seconds)
        whole = dict(state) | {each.key: each.updater.state_dict() for each in self.trained}
        whole |= {"seconds": self.progress.seconds, "rows_per_update": self._rows_per_update}
        if self.trained[0].updater.half:
            whole[HALF] = True
        require_equal_weights(self.trained[0].model, "model")
        with ExitStack() as stack:
            for each in self.trained:
                stack.enter_context(each.updater.engine.whole_on_main())
            ranks.on_main(self._write, step, whole)

    def prune(self, scores: Mapping[int, float] | None = None) -> None:
        """Removes what experiment.keep_last does not keep. scores: of steps, by which the best is kept too, and linked
        to; None without keep_best."""
        ranks.on_main(self._prune, scores)

    def point_to_best(self, scores: Mapping[int, float] | None) -> None:
        """Links ckpt/best to the checkpoint with the highest score whose files are as they were written."""
        if scores is not None:
            ranks.on_main(self._prove_best, scores)

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        policy, *value = self.trained
        if self.dtype is not None:
            state = {**state, WEIGHTS: {each.key: _exact_weights(each.model) for each in self.trained}}
        model_of_value = value[0].model if value else None
        assert isinstance(policy.model, DiffusionLM)
        card = self.card.text(policy.model, self.folder.parent / "metrics.jsonl", step) if self.card else None
        average = policy.updater.average
        contents = Contents(self.command, policy.model, state, model_of_value, self.logs, self.dtype, card, average)
        self._point_to(save_checkpoint(self.folder, step, contents))

    def _prune(self, scores: Mapping[int, float] | None) -> None:
        best = None
        if scores is not None:
            best = point_to_best(self.folder, {step: scores[step] for step in scores if step not in self._damaged})
        prune_checkpoints(self.folder, self.keep_last, best, self.progress.step)

    def _prove_best(self, scores: Mapping[int, float]) -> None:
        left = dict(scores)
        while (best := point_to_best(self.folder, left)) is not None and (problem := problem_of(best, proven=True)):
            logger.warning("checkpoint %s is not whole (%s): it cannot be the best", best, problem)
            step = step_of(best)
            assert step is not None
            self._damaged.add(step)
            del left[step]

    def _check_logs(self) -> None:
        """Warns of a log that is not as it was when the checkpoint was written."""
        assert self.start is not None
        for name, (size, digest) in Listed.read(self.start).logs.items():
            log = self.folder.parent / name
            if not log.is_file() or log.stat().st_size < size or file_digest(log, size) != digest:
                logger.warning(
                    "%s was damaged or edited: up to step %d it is not what the run wrote", log, self.progress.step
                )

    def _point_to(self, checkpoint: Path) -> None:
        policy, *value = [each.link for each in self.trained]
        point_to(checkpoint, policy, value[0] if value else None, self.average_link)
