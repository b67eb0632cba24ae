"""The evaluations of an RL run: when they are due, their results, the best step."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.schema import Config
from reward.base import Reward
from runtime import ranks
from runtime.files import append_jsonl, atomic_write_text, parsed
from runtime.monitor import Monitor
from runtime.run_folder import RunFolder
from train.algorithm.early import rounds_without_gain
from train.evaluation import EvaluationSetup, evaluate
from train.figures import figures
from train.setup.eval_sets import EvalSet

logger = logging.getLogger(__name__)

Metrics = dict[str, float]
HEADLINE = ("accuracy", "stderr", "reward", "length", "tokens_per_forward")


class Evaluations:
    """Evaluates steps of a run and keeps what it finds, in memory and in evaluations.json. Every rank calls every
    method; rank 0 alone grades and writes.

    setup: None without evaluations. reward: rank 0's of training, which evaluates too where the two are one. last_step:
    the last one that needs not be done again (-1: none); what was found and logged after it is dropped. found: step ->
    decoding -> metrics; the first decoding is the run's headline.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        setup: EvaluationSetup | None,
        reward: Reward | None,
        monitor: Monitor,
        last_step: int,
    ):
        self.config, self.folder, self.setup = config, folder, setup
        self.reward, self.monitor = reward, monitor
        self.found: dict[int, dict[str, Metrics]] = ranks.on_main(self._until, last_step)

    def due(self, step: int) -> bool:
        """Whether `step` is to be evaluated and was not yet."""
        experiment = self.config.experiment
        regular = step % experiment.eval_every == 0 or step == experiment.total_step
        wanted = experiment.eval_first if step == 0 else regular
        return wanted and self.setup is not None and step not in self.found

    def run(self, step: int) -> None:
        """Evaluates the model as it is after `step`."""
        assert self.setup is not None
        results = evaluate(self.setup, self._graded, self.monitor)
        self.found[step] = figures(results, self.setup.weights)
        for name, metrics in self.found[step].items():
            self.monitor.evaluation(step, metrics, name=name, score=self._score)
        self.monitor.evaluation_table(step, self.found[step])
        ranks.on_main(append_jsonl, self.folder.scores, [result.scores(step) for result in results])
        ranks.on_main(self._write, self.found)

    @contextlib.contextmanager
    def _graded(self, each: EvalSet) -> Iterator[Reward]:
        """The reward of a set: that of training, which stays, or its own while it is needed."""
        if self.reward is not None and each.graded_as_training(self.config):
            yield self.reward
            return
        with each.reward_of(self.config) as reward:
            yield reward

    @property
    def is_stale(self) -> bool:
        """Whether the headline has not got better at experiment.early_stopping evaluations in a row."""
        patience = self.config.experiment.early_stopping
        if patience is None or self.setup is None:
            return False
        return ranks.on_main(self._rounds_without_gain) >= patience  # speeds differ between ranks

    def _rounds_without_gain(self) -> int:
        experiment, found = self.config.experiment, self._headlines
        name = self._score if experiment.early_stopping_metric == "auto" else experiment.early_stopping_metric
        values = [found[step][name] for step in sorted(found) if name in found[step]]
        if found and not values:
            raise ValueError(
                f"experiment.early_stopping_metric={name}: no evaluation has it; choose from "
                f"{', '.join(next(iter(found.values())))}."
            )
        return rounds_without_gain(values, experiment.early_stopping_gain)

    @property
    def scores(self) -> dict[int, float] | None:
        """The accuracy of each evaluated step that has one, or the mean reward where rewards are not 0 or 1; None
        without experiment.keep_best."""
        if not self.config.experiment.keep_best:
            return None
        headlines, score = self._headlines, self._score
        return {step: metrics[score] for step, metrics in headlines.items() if score in metrics}

    @property
    def _headlines(self) -> dict[int, Metrics]:
        return {step: next(iter(entries.values())) for step, entries in self.found.items()}

    @property
    def _score(self) -> str:
        """What steps are compared by."""
        return "reward" if any("partial" in metrics for metrics in self._headlines.values()) else "accuracy"

    def summary(self, last_step: int) -> dict[str, Any]:
        """The headline before the first step and after the last one."""
        found: dict[str, Any] = {}
        for when, step in (("before", 0), ("after", last_step)):
            headline = next(iter(self.found.get(step, {}).values()), {})
            found |= {f"{name}_{when}": headline.get(name) for name in HEADLINE}
        return found

    def _until(self, last_step: int) -> dict[int, dict[str, Metrics]]:
        """Takes out of evaluations.json and metrics.jsonl what came after `last_step`; returns what is left. The two
        hold the same numbers: where one is damaged, the other is believed, or the step evaluated again."""
        path, logged = self.folder.evaluations, self._whole(_logged(self.folder.metrics))
        on_disk: dict[int, dict[str, Metrics]] | None = None
        try:
            found = on_disk = _read(path)
        except (ValueError, RecursionError) as error:
            logger.warning("%s is damaged (%s): it is made again from metrics.jsonl", path, error)
            found = logged
        kept = {step: entries for step, entries in found.items() if step <= last_step}
        steps = sorted(step for step in kept.keys() | logged.keys() if step <= last_step)
        for step in [step for step in steps if kept.get(step) != logged.get(step)]:
            if step == last_step:
                if kept.pop(step, None) is not None:
                    logger.warning("%s and metrics.jsonl differ in step %d, which is evaluated again", path, step)
            elif step in logged:
                kept[step] = logged[step]
                logger.warning("%s lacks or changes step %d of metrics.jsonl, which is believed", path, step)
            else:
                logger.warning("%s lacks the evaluation of step %d", self.folder.metrics, step)
        if kept != on_disk:
            self._write(kept)
        self.folder.drop_after(last_step, kept)
        return kept

    def _whole(self, found: dict[int, dict[str, Metrics]]) -> dict[int, dict[str, Metrics]]:
        """Those of all decodings."""
        names = set(self.setup.names) if self.setup is not None else set()
        return {step: entries for step, entries in found.items() if entries.keys() >= names}

    def _write(self, found: dict[int, dict[str, Metrics]]) -> None:
        atomic_write_text(self.folder.evaluations, json.dumps(found, indent=1) + "\n")


def _read(path: Path) -> dict[int, dict[str, Metrics]]:
    """evaluations.json, in order of steps; nothing where it is absent. ValueError where it is damaged."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    try:
        return {int(step): {name: {**metrics} for name, metrics in entries.items()} for step, entries in found.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError("it holds something else than metrics by step and decoding") from error


def _logged(path: Path) -> dict[int, dict[str, Metrics]]:
    """The evaluations that metrics.jsonl holds, also those that were broken off."""
    found: dict[int, dict[str, Metrics]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        row = parsed(line) or {}
        for key, value in row.items():
            start, _, rest = key.partition("/")
            name, _, metric = rest.rpartition("/")
            if start == "eval" and name and isinstance(row.get("step"), int):
                found.setdefault(row["step"], {}).setdefault(name, {})[metric] = value
    return found
