"""Reinforcement learning: rollout -> reward -> credit -> training samples -> update -> weights in place -> rollout."""

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch

from configs.schema import Config, DecodeConfig
from configs.sets import described
from models import DiffusionLM
from runtime import heartbeat, ranks, stopping
from runtime.profiler import Profiler
from runtime.run_folder import RunFolder
from sample import Sampler, SamplingConfig
from train import checks, prepare
from train.collect import Collector, rollout_metrics
from train.distributed.accelerator import make_accelerator
from train.distributed.kind import engine_kind, engine_line, offloads
from train.evaluate import Evaluations
from train.evaluation import EvaluationSetup
from train.grading import Grading
from train.learner.batch import Replay
from train.learner.checkpoint import BEST, RL
from train.learner.critic import Critic, NoCritic
from train.learner.optimizer import OptimizerSettings, Schedule, UpdateSettings
from train.learner.policy import Policy, TrainResult
from train.learner.rollout_log import GradedRollouts, RolloutLog
from train.learner.saving import RunCheckpoints, Trained
from train.learner.updater import Updater
from train.memory.fit import Fit
from train.memory.machine import used_memory
from train.rl_settings import check_rl_settings
from train.setup.blocks import Blocks, adopt_block_size
from train.setup.decodings import inference_model, sampling_entries
from train.setup.doors import method_of, objective_of
from train.setup.eval_sets import eval_sets
from train.setup.models import (
    RunModels,
    copy_to_sample,
    frozen_reference,
    make_trained_model,
    make_value_model,
    spec_of,
)
from train.setup.pictures import Eyes
from train.setup.process import monitor_of, pick_device, precision, prepare_process, run_folder, sampling_dtype
from train.setup.prompts import load_prompts
from train.setup.rewards import sandbox_row, step_judge_of
from train.setup.sources import pinned
from train.setup.step_judge import StepJudge
from train.setup.train_sets import TrainRewards, TrainTasks, train_sets
from train.utilisation import Utilisation


def run(config: Config) -> dict[str, Any] | None:
    """A whole RL run, new or resumed. Returns what the final line shows; None for a dry run."""
    prepare_process(config)
    ranks.on_main(check, config)
    if config.dry_run:
        return None
    if ranks.on_main(prepare.to_be_prepared, config):
        prepare.prepare_model(config)
        prepare_process(config)  # over what the SFT set for itself
    config = ranks.on_main(pinned, config)
    with run_folder(config, "rl") as folder, Run(config, folder) as rl:
        return rl.loop()


def check(config: Config) -> None:
    """Everything that can be known to fail, of the run and of the SFT that makes its model where that is absent."""
    check_rl_settings(config)  # its own mistakes before those of the SFT, whose checks take a while
    checks.check(config, prepare.checked_preparation(config))


class Run:
    """Everything alive during a run; `steps` is the algorithm."""

    def __init__(self, config: Config, folder: RunFolder):
        self.folder, self.monitor = folder, monitor_of(config, folder, "rl")
        self.rewards = TrainRewards(config) if ranks.is_main() else None
        judge = step_judge_of(config) if ranks.is_main() else None
        self.checkpoints = RunCheckpoints(folder, config, RL)
        config, step = self.checkpoints.resumed_config(config), self.checkpoints.progress.step
        total = self.checkpoints.steps_in_all(config.experiment.total_step, "experiment.total_step")
        fit = Fit.of(config, RunModels.of(config, spec_of(config, self.checkpoints.start)))
        self.config = config = replace(fit.config, experiment=replace(config.experiment, total_step=total))
        self.learner = Learner(config, self.checkpoints)
        model = self.learner.model
        grading = Grading(
            self.rewards,
            StepJudge(config, model, judge) if judge else None,
            RolloutLog(folder, step) if ranks.is_main() else None,
        )
        tasks = TrainTasks.load(config, model)
        self.collector = Collector(config, self.learner.sampler, tasks, grading, self.monitor)
        self.collector.curriculum.load_state_dict(self.checkpoints.saved.get("curriculum", {}))
        if fit.keeps_slots:
            longest = max(len(prompt.ids) for prompt in self.collector.prompts)
            self.learner.sampler.keep_slots(fit.sizes["slots"].number, longest)
        setup = _evaluation_setup(config, self.learner)
        self.checkpoints.restore(*self.learner.trained)
        done, reward = step if self.checkpoints.start else -1, self.rewards.of_config if self.rewards else None
        self.evaluations = Evaluations(config, folder, setup, reward, self.monitor, done)
        self.checkpoints.point_to_best(self.evaluations.scores)
        self.done = step
        self.profiler = Profiler(config.tracking.profile_steps, folder.path, ranks.rank())
        self.utilisation = Utilisation(model, ranks.world_size())
        self.monitor.banner(f"RL {config.experiment.project}", self._banner_rows() | fit.rows())

    def loop(self) -> dict[str, Any]:
        """The whole run. On a signal it drops the rollouts at hand, or finishes the step's updates, and saves."""
        try:
            self.steps()
            if self.done > self.checkpoints.progress.step:  # it stopped early
                self.save(self.done)
        except stopping.Stopped as stop:
            if self.done > self.checkpoints.progress.step:
                self.save(self.done)
            stop.resumes = heartbeat.where_to_resume(self.folder.path, self.config.experiment.resume)
            raise
        return self.finish()

    def steps(self) -> None:
        collector, policy, critic, timed = self.collector, self.learner.policy, self.learner.critic, self.monitor.timed
        self.monitor.begin(self.done)
        self.evaluate_if_due(self.done)
        for step in range(self.done + 1, self.config.experiment.total_step + 1):
            if self.evaluations.is_stale:
                self.monitor.event(f"evaluations get no better: stopped after step {self.done}")
                break
            self.monitor.begin(step)
            self.profiler.at(step)
            prompts = collector.draw(step)
            with timed("rollout"):
                rollouts = collector.rollouts(prompts, step)
            with timed("reward"):
                graded = collector.grade(rollouts)
            with timed("replay"):
                given = graded.rollouts, graded.credit.values, graded.credit.kind, graded.rewards
                batch = policy.replay.batch(*given, collector.shown(graded.rollouts))
            with timed("value"):
                batch, value_metrics = critic.step(batch, graded.rollouts, step)
            with timed("update"), self.monitor.progress(policy.rows_to_train(batch), "update") as progress:
                result = policy.train(batch, step, progress.advance)
            with timed("sync"):
                self.learner.sampler.update_weights(self.learner.updater.engine.weights())
            self.log(step, graded, replace(result, metrics=result.metrics | value_metrics))
            self.done = step
            self.save_if_due(step)
            self.evaluate_if_due(step)
            stopping.check()

    def save_if_due(self, step: int) -> None:
        experiment = self.config.experiment
        regular = step % experiment.save_every == 0 or step == experiment.total_step
        if regular or (experiment.keep_best and self.evaluations.due(step)):
            with self.monitor.timed("save"):
                self.save(step)

    def save(self, step: int) -> None:
        self.checkpoints.save(step, {"curriculum": self.collector.curriculum.state_dict()})
        self.checkpoints.prune(self.evaluations.scores)

    def evaluate_if_due(self, step: int) -> None:
        if self.evaluations.due(step):
            with self.monitor.timed("eval"):
                self.evaluations.run(step)
                self.checkpoints.prune(self.evaluations.scores)

    def log(self, step: int, graded: GradedRollouts, result: TrainResult) -> None:
        """The step's line and metrics; a step whose groups all dropped reports why it was skipped."""
        group_size = self.config.rollout.num_response_per_task
        version = {"weights_version": float(self.learner.sampler.weights_version)}
        metrics = result.metrics | rollout_metrics(graded, group_size, self.collector.sources) | version | used_memory()
        metrics |= self.utilisation.metrics(metrics)
        if result.skipped is not None:
            dropped = graded.credit.dropped.items()
            reasons = [f"{count} of {metrics['groups']:g} groups dropped ({why})" for why, count in dropped]
            if result.skipped:
                reasons.append(result.skipped)
            if not graded.rollouts:
                reasons.append("its tasks have no pictures to be used")
            elif self.config.training.truncated == "wrong" and metrics["truncated"]:
                reasons.append(f"{metrics['truncated']:.0%} of the responses have no stop and count as 0")
            self.monitor.event(f"step {step} trains nothing and is skipped: {', '.join(reasons)}")
        self.monitor.step(step, self.config.experiment.total_step, metrics)

    def finish(self) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "steps": self.done,
            "seconds": round(self.checkpoints.seconds, 1),
        }
        summary |= self.evaluations.summary(self.done) | {"model": str(self.checkpoints.model)}
        best = self.folder.checkpoints / BEST
        if self.config.experiment.keep_best and best.is_symlink():
            summary["best_model"] = str(best)
        self.monitor.curves()
        ranks.on_main(self.folder.finish, summary)
        self.monitor.final(summary)
        return summary

    def _banner_rows(self) -> dict[str, str]:
        config, training, rollout = self.config, self.config.training, self.config.rollout
        model, total, start = self.learner.model, config.experiment.total_step, self.checkpoints.start
        sampled_dtype = str(self.learner.sampled.dtype).removeprefix("torch.")
        steps = f"{self.done + 1} to {total}" if self.done < total else f"all {self.done} are done"
        return {
            "model": checks.model_line(config, model),
            "device": f"{model.device}, training {checks.precision_line(config, model)}, sampling {sampled_dtype}",
            "tasks": f"{described(config.dataset.train_dataset)}: {len(self.collector.prompts):,} prompts",
            "step": checks.responses_line(config),
            "update": f"{checks.rows_line(config)} (a response and round each)",
            "sampling": f"{rollout.strategy}, block {self.learner.blocks.sampled[0]}, "
            f"up to {rollout.max_new_tokens} tokens{checks.revision_line(rollout)}",
            "objective": checks.objective_line(config),
            **({"value": checks.value_line(config)} if config.model.value_base_model else {}),
            "steps": steps,
            **sandbox_row(config, [each.named.data_type for each in train_sets(config)]),
            "engine": engine_line(config),
            "seed": str(training.seed),
            "folder": f"{self.folder.path}" + (f" (resumed from {start.name})" if start else ""),
        }

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.profiler.close()
        if self.rewards is not None:
            self.rewards.close()
        self.monitor.close()


class Learner:
    """The models of a run, from a checkpoint or as the config names them, with what trains and samples them."""

    def __init__(self, config: Config, checkpoints: RunCheckpoints):
        device = pick_device(config.model.device)
        numerics, dtype = precision(config, device), sampling_dtype(config, device)
        self.model = make_trained_model(config, numerics, checkpoints.start)
        checkpoints.restore_weights(self.model, "updater")
        self.blocks = Blocks.of(config, self.model.spec)
        adopt_block_size(self.model, self.blocks.trained)
        apart = copy_to_sample(config, self.model, dtype, device)
        training, params = config.training, config.optimizer.params
        accelerator = make_accelerator(numerics, device, engine_kind(config), offloads(config))
        settings = UpdateSettings.of(training)
        self.updater = Updater(self.model, accelerator, OptimizerSettings.of(params), settings)
        self.sampled = inference_model(self.model, dtype) if apart is None else apart
        (sampling,) = _decodings(config, config.rollout, self.model, self.blocks.sampled).values()
        sampling = replace(sampling, record_routing=training.replay_routing)
        self.sampler = Sampler(self.sampled, sampling)
        if apart is not None:
            self.sampler.update_weights(self.updater.engine.weights())
        self.sampler.weights_version = checkpoints.progress.step
        reference = frozen_reference(config, self.model, numerics, self.updater.model)
        method, group_size = method_of(training, "rl"), config.rollout.num_response_per_task
        one_numerics = (dtype == torch.bfloat16) == accelerator.half
        replay = Replay.of(self.model, sampling, training, method, group_size, one_numerics)
        schedule = Schedule.of(config.lr_scheduler, config.experiment.total_step)
        self.policy = Policy(self.updater, replay, objective_of(training), schedule, reference)
        self.critic: Critic | NoCritic = NoCritic()
        self.trained = [Trained(self.model, self.updater, config.model.optimized_name)]
        value = make_value_model(config, self.model.spec, checkpoints.value_start)
        if value is not None:
            checkpoints.restore_weights(value, "value_updater")
            optimizer = OptimizerSettings.of(params, params.value_learning_rate)
            updater = Updater(value, accelerator, optimizer, replace(settings, ema_decay=0.0))
            self.critic = Critic(value, updater, replay, schedule, config.experiment.train_value_every)
            self.trained.append(Trained(value, updater, config.model.optimized_value_name, "value_updater"))


def _decodings(
    config: Config, decode: DecodeConfig, model: DiffusionLM, blocks: Sequence[int]
) -> dict[str, SamplingConfig]:
    seed, deterministic = config.training.seed, config.experiment.deterministic
    return sampling_entries(decode, model, blocks, seed=seed, deterministic=deterministic)


def _evaluation_setup(config: Config, learner: Learner) -> EvaluationSetup | None:
    """What the run's evaluations sample; None where the config names no tasks for them."""
    evaluation = config.evaluation
    decodings = _decodings(config, evaluation, learner.model, learner.blocks.evaluated)
    if not evaluation.eval_dataset:
        return None
    sets = [(each, load_prompts(config, each.source, learner.model)) for each in eval_sets(config, "rl")]
    eyes, source = Eyes.of(config, learner.sampled), config.dataset.source_column
    return EvaluationSetup(learner.sampled, sets, decodings, evaluation.num_response_per_task, eyes, source)
