"""Supervised fine-tuning: examples -> noisy training samples -> update.

Run it as `python train/sft.py config=configs/sft_tiny.yaml`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from train.command import main

    main("train.sft", "python train/sft.py config=configs/NAME.yaml [a.b=c ...]")
    sys.exit()  # what follows takes seconds to import; it is run as the module train.sft, and never by a launcher

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch

from configs.schema import Config, TrainingConfig
from configs.sets import described
from data.tasks import Example
from models.spec import CheckpointSpec
from reward.judge.judge import CHARACTERS_A_TOKEN
from runtime import heartbeat, ranks, stopping
from runtime.profiler import Profiler
from runtime.run_folder import RunFolder
from runtime.text import print_text
from train import checks, evaluation, traces
from train.algorithm.masking import Method
from train.algorithm.mixture import epoch_order
from train.algorithm.replay import TrainingSample
from train.canvas_checks import check_canvases
from train.credit_checks import check_preference
from train.distributed.accelerator import make_accelerator
from train.distributed.kind import check_engine, engine_kind, engine_line, offloads, shards_weights
from train.distributed.sharding import rows_per_update
from train.examples import check_held_out, examples_of, mixture_of
from train.held_out import HeldOut, described_split, nothing_left
from train.idle import warn_of_idle_noise, warn_of_idle_pairs, warn_of_idle_steps
from train.learner.checkpoint import SFT
from train.learner.optimizer import OptimizerSettings, Schedule, UpdateSettings
from train.learner.saving import RunCheckpoints, Trained
from train.learner.tuning import Canvases, Learning, Likelihood, Preference
from train.learner.updater import StepTotals, Updater
from train.memory.fit import Fit
from train.memory.machine import used_memory
from train.memory.report import check_memory
from train.setup.blocks import Blocks, adopt_block_size
from train.setup.doors import check_doors, method_of
from train.setup.examples import check_lengths, for_model, make_samples, responses_of, see, tokenised
from train.setup.models import RunModels, frozen_reference, make_trained_model, spec_of
from train.setup.pictures import Eyes, check_fit
from train.setup.process import monitor_of, pick_device, precision, prepare_process, run_folder
from train.setup.sources import pinned, require_as_written
from train.utilisation import Utilisation


def run(config: Config) -> dict[str, Any] | None:
    """A whole SFT run, new or resumed. Returns what the final line shows; None for a dry run."""
    prepare_process(config)
    if (first := ranks.on_main(checked_sampling, config)) is not None:
        if config.dry_run:
            return None
        traces.sample(first)
        prepare_process(config)  # over what the evaluation set for itself
    examples, held_out = ranks.on_main(check, config)
    if config.dry_run:
        return None
    config = ranks.on_main(pinned, config)
    with run_folder(config, "sft") as folder, FineTuning(config, folder, examples, held_out) as tuning:
        return tuning.loop()


@dataclass(frozen=True)
class UpdatePlan:
    """Examples of an update, updates of an epoch (the last one may have fewer examples), updates of the run."""

    examples: int
    per_epoch: int
    total: int

    @staticmethod
    def of(training: TrainingConfig, examples: int) -> "UpdatePlan":
        per_update = min(examples, rows_per_update(training))
        per_epoch = -(-examples // per_update)
        return UpdatePlan(per_update, per_epoch, training.max_steps or per_epoch * training.num_train_epochs)

    def __str__(self) -> str:
        return f"{self.total:,} updates, {self.total / self.per_epoch:.3g} epochs of {self.per_epoch:,}"


def checked_sampling(config: Config) -> Config | None:
    """The eval.py config that samples the examples first, after everything that can be known to fail before it; None
    where they are there."""
    if (first := traces.to_be_sampled(config)) is None:
        return None
    spec, method = check_settings(config)
    traces.check_traces(first, config, spec, method)
    check_held_out(config)
    checks.check_start(config, SFT)
    if config.dry_run:
        print_text(f"{config.dataset.optimization_data} is absent; {config.dataset.sample_with} would sample it first.")
    check_memory(config, RunModels.of(config, spec, "sft"), first.rollout.max_new_tokens)
    evaluation.check(first)
    return first


def check(config: Config) -> tuple[list[Example], list[Example]]:
    """The examples, and those held out, after everything that can be known to fail before a model is loaded. A dry run
    prints sizes."""
    spec, method = check_settings(config)
    examples, held_out = examples_of(config, spec, method)
    warn_of_idle_pairs(config, [*examples, *held_out])
    check_fit(config, spec.family, [*examples, *held_out])
    for given in (examples, held_out):
        check_lengths(given, config, spec)
    checks.check_start(config, SFT)
    if config.dry_run:
        _print_plan(config, len(examples) // responses_of(config.training))
    check_memory(config, RunModels.of(config, spec, "sft"), _response_tokens(config.training, [*examples, *held_out]))
    return examples, held_out


def check_settings(config: Config) -> tuple[CheckpointSpec, Method]:
    """What can be known to fail without the examples; the model's spec, and the masking method."""
    training = config.training
    method_of(training, "sft")
    if config.experiment.keep_best:
        raise ValueError("experiment.keep_best: fine-tuning has no evaluations that find the best; leave it out.")
    if training.lower_p > training.upper_p:
        raise ValueError(f"training.lower_p={training.lower_p} exceeds training.upper_p={training.upper_p}.")
    pick_device(config.model.device)
    require_as_written(spec := spec_of(config))
    check_canvases(config, spec)
    check_engine(config, spec.folder)
    method = check_doors(training, "sft", spec.family.attention, spec.family.logit_shift)
    check_preference(config, spec)
    checks.check_trackers(config)
    warn_of_idle_steps(config, method)
    warn_of_idle_noise(training, "sft")
    return spec, method


def _print_plan(config: Config, examples: int) -> None:
    """The arithmetic of a fine-tuning, for a dry run."""
    plan = UpdatePlan.of(config.training, examples)
    print_text(f"dry run of {config.experiment.project}: everything named exists and fits together")
    counted = counted_as(config.training)
    print_text(f"  data    {described(config.dataset.optimization_data)}: {examples:,} {counted}")
    print_text(f"  update  {plan.examples} {counted}; {plan}")


def counted_as(training: TrainingConfig) -> str:
    """What an update has so many of."""
    return "examples" if responses_of(training) == 1 else "pairs"


def _response_tokens(training: TrainingConfig, examples: Sequence[Example]) -> int:
    """The longest response, before any is tokenised; of one that a model sampled the canvas, which is replayed
    whole."""
    longest = 1 + max((len(example.response) for example in examples), default=0) // CHARACTERS_A_TOKEN
    canvases = (len(example.trace["canvas_ids"]) for example in examples if example.trace is not None)
    return max(min(longest, training.max_gen_length or longest), *canvases, 0)


class FineTuning:
    """Everything alive during fine-tuning; `steps` is the algorithm."""

    def __init__(self, config: Config, folder: RunFolder, examples: Sequence[Example], held_out: Sequence[Example]):
        self.folder, self.monitor = folder, monitor_of(config, folder, "sft")
        self.checkpoints = RunCheckpoints(folder, config, SFT)
        config = self.checkpoints.resumed_config(config)
        spec = spec_of(config, self.checkpoints.start)
        longest = _response_tokens(config.training, [*examples, *held_out])
        fit = Fit.of(config, RunModels.of(config, spec, "sft"), longest)
        config = fit.config
        device = pick_device(config.model.device)
        numerics = precision(config, device)
        self.model = make_trained_model(config, numerics, self.checkpoints.start)
        self.checkpoints.restore_weights(self.model, "updater")
        self.method = method_of(config.training, "sft")
        blocks = Blocks.of(config, self.model.spec, "sft")
        settings = for_model(config.training, self.model, self.method, blocks.trained)
        self.config = config = replace(config, training=settings)
        adopt_block_size(self.model, blocks.trained)
        if shards_weights(config):
            self.model.keep_whole_vision(torch.bfloat16 if numerics == "bf16" else torch.float32, device)
        self.samples, self.eyes = tokenised(examples, self.model, config, self.method), Eyes.of(config, self.model)
        accelerator = make_accelerator(numerics, device, engine_kind(config), offloads(config))
        optimizer, updates = OptimizerSettings.of(config.optimizer.params), UpdateSettings.of(config.training)
        each = responses_of(settings)
        self.sets = mixture_of(config, self.samples[::each])
        self.updater = Updater(self.model, accelerator, optimizer, updates)
        self.held_out = HeldOut(
            *(held_out, self.model, config, self.method, self.checkpoints.saved.get("held_out", {})),
        )
        self.checkpoints.restore(Trained(self.model, self.updater, config.model.optimized_name))
        self.done = self.checkpoints.progress.step
        self.has_tried = self.has_learned = self.done > 0  # nothing is saved before
        ranks.on_main(folder.drop_after, self.done if self.checkpoints.start else -1)
        plan = UpdatePlan.of(config.training, len(self.samples) // each)
        key = "training.max_steps" if config.training.max_steps else "updates of training.num_train_epochs"
        self.plan = replace(plan, total=self.checkpoints.steps_in_all(plan.total, key))
        self.schedule = Schedule.of(config.lr_scheduler, self.plan.total)
        self.longest = max(len(sample.response_ids) for sample in self.samples)
        self.learning = self._learning(numerics)
        saved = self.checkpoints.saved
        self.last = {name: saved[name] for name in self.learning.final if name in saved} or {"nll": 0.0}
        self.profiler = Profiler(config.tracking.profile_steps, folder.path, ranks.rank())
        self.utilisation = Utilisation(self.model, ranks.world_size())
        self.monitor.banner(f"SFT {config.experiment.project}", self._banner_rows() | fit.rows())

    def _learning(self, numerics: str) -> Learning:
        """What updates learn, as training.sft_objective says."""
        training, label_of = self.config.training, {sample.index: sample.of for sample in self.samples if sample.of}
        if self.method.canvases:
            return Canvases(self.updater, label_of)
        reference = frozen_reference(self.config, self.model, numerics, self.updater.model, "sft")
        if reference is None:
            return Likelihood(self.updater, training, self.model.attention, self.longest, label_of)
        return Preference(self.updater, reference, training.dpo_beta, label_of)

    def loop(self) -> dict[str, Any]:
        """The whole run. On a signal it gives the update at hand up (engines in lockstep finish it) and saves."""
        try:
            self.steps()
            require_learned(self)
            if self.done > self.checkpoints.progress.step:  # it stopped early
                self.save()
        except stopping.Stopped as stop:
            if self.has_learned and self.done > self.checkpoints.progress.step:
                self.save()
            stop.resumes = heartbeat.where_to_resume(self.folder.path, self.config.experiment.resume)
            raise
        return self.finish()

    def steps(self) -> None:
        timed = self.monitor.timed
        self.measure_if_due(self.done)
        for step in range(self.done + 1, self.plan.total + 1):
            if self.held_out.is_stale:
                self.monitor.event(f"{self.held_out.no_gain}: stopped after update {self.done}")
                break
            self.monitor.begin(step)
            self.profiler.at(step)
            with timed("replay"):
                samples = self.training_samples(step)
            with timed("update"):
                totals = self.update(samples, step)
            self.log(step, totals)
            self.done = step
            if totals.updates:
                metrics = self.learning.metrics(totals)
                self.last = {name: metrics[name] for name in self.learning.final}
            self.has_tried |= bool(totals.results)
            self.has_learned |= totals.updates > 0
            if step % self.plan.per_epoch == 0 and not self.has_tried:
                require_learned(self)
            self.measure_if_due(step)
            self.save_if_due(step)
            stopping.check()

    def measure_if_due(self, step: int) -> None:
        if self.held_out.due(step, self.plan.total):
            with self.monitor.timed("eval"):
                self.held_out.measure(self.learning, step, self.monitor)

    def training_samples(self, step: int) -> list[TrainingSample]:
        """The training samples of update `step` (from 1): its examples, in the epoch's order, under the epoch's
        masks."""
        epoch, place = divmod(step - 1, self.plan.per_epoch)
        order = epoch_order(self.config.training.seed, epoch, self.sets)
        drawn = order[place * self.plan.examples : (place + 1) * self.plan.examples]
        each = responses_of(self.config.training)
        places = [(each * i + side, turn) for i, turn in drawn for side in range(each)]
        chosen = see([replace(self.samples[i], turn=turn) for i, turn in places], self.eyes)
        given = self.model, self.config.training, self.method
        return [sample for one in chosen for sample in make_samples(one, *given, one.turn, self.longest)]

    def update(self, samples: Sequence[TrainingSample], step: int) -> StepTotals:
        """Update `step` (from 1) on these training samples; without any, none."""
        if not samples:
            return StepTotals()
        self.updater.set_rate(self.schedule.scale(step - 1))
        return self.learning.update(samples)

    def log(self, step: int, totals: StepTotals) -> None:
        if not totals.results:
            why = nothing_left(self.config.training, self.samples)
            self.monitor.event(f"step {step} trains nothing and is skipped: {why}")
            self.monitor.step(step, self.plan.total, {"updates_skipped": 1.0}, self.learning.shown, quiet=True)
            return
        metrics = {
            **self.learning.metrics(totals),
            "grad_norm": totals.mean_grad_norm,
            "learning_rate": self.updater.rate,
            "trained_tokens": totals.total("tokens"),
            "packed_tokens": float(totals.packed_tokens),
            **totals.speed,
            "updates_skipped": float(totals.skipped),
            **totals.expert_balance,
            **used_memory(),
        }
        quiet = step % max(1, self.plan.total // 20) != 0 and step != self.plan.total
        metrics |= self.utilisation.metrics(metrics)
        self.monitor.step(step, self.plan.total, metrics, self.learning.shown, quiet=quiet)

    def save_if_due(self, step: int) -> None:
        experiment = self.config.experiment
        epochs, rest = divmod(step, self.plan.per_epoch)
        due = rest == 0 and epochs % experiment.save_every == 0
        if experiment.save_every_updates is not None:
            due = due or step % experiment.save_every_updates == 0
        if self.has_learned and (due or step == self.plan.total):
            self.save()

    def save(self) -> None:
        with self.monitor.timed("save"):
            self.checkpoints.save(self.done, {**self.last, "held_out": self.held_out.found})
            self.checkpoints.prune()

    def finish(self) -> dict[str, Any]:
        measured = self.held_out.found.get(self.done, {})
        summary = {
            "steps": self.done,
            **self.last,
            **{f"validation_{name}": value for name, value in measured.items()},
            "seconds": round(self.checkpoints.seconds, 1),
            "model": str(self.checkpoints.model),
        }
        self.monitor.curves()
        ranks.on_main(self.folder.finish, summary)
        self.monitor.final(summary)
        return summary

    def _banner_rows(self) -> dict[str, str]:
        config, training, start = self.config, self.config.training, self.checkpoints.start
        counted, examples = counted_as(training), sum(size for size, _ in self.sets)
        reference = config.model.reference_model or "the first model"
        averaged = training.normalization if counted == "examples" else "mean over pairs"
        return {
            "model": checks.model_line(config, self.model),
            "device": f"{self.model.device}, {checks.precision_line(config, self.model)}",
            counted: f"{described(config.dataset.optimization_data)}: {examples:,}",
            **described_split(config, self.held_out.samples),
            "update": f"{self.plan.examples} {counted} x {training.mask_times_per_sample} noisy copies",
            "steps": str(self.plan),
            "method": f"{training.method}, block {training.block_size}, {averaged}",
            **({"reference": f"{reference}, beta {training.dpo_beta:g}"} if counted == "pairs" else {}),
            "engine": engine_line(config),
            "seed": str(training.seed),
            "folder": f"{self.folder.path}" + (f" (resumed from {start.name})" if start else ""),
        }

    def __enter__(self) -> "FineTuning":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.profiler.close()
        self.monitor.close()


def require_learned(tuning: FineTuning) -> None:
    """ValueError where no update so far changed the model."""
    if tuning.has_learned:
        return
    why = f"{nothing_left(tuning.config.training, tuning.samples)}: train on others"
    if tuning.has_tried:
        why = "they were not finite: lower optimizer.params.learning_rate"
    raise ValueError(f"none of the {tuning.done} updates changed the model, and nothing is saved: {why}.")
