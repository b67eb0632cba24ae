"""Reinforcement learning: rollout -> reward -> advantage -> rows -> update -> weights in place -> rollout.

Shapes: G responses a prompt.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from configs import find, load_config
from configs.schema import Config, DecodeConfig
from runtime import ranks, stopping
from runtime.files import atomic_write_text
from runtime.run_folder import RunFolder, run_path
from sample import Rollout, Sampler
from sample.rollout import Key
from train import checks, sft
from train.algorithm.advantages import Credit, group_advantages
from train.algorithm.curriculum import Curriculum
from train.distributed.accelerator import make_accelerator
from train.distributed.kind import engine_kind, shards_weights
from train.distributed.sharding import (
    keep_rows_per_update,
    require_equal_weights,
    rows_per_update,
    sample,
    weights_digest,
)
from train.evaluation import evaluate
from train.learner.checkpoint import (
    BEST,
    RL,
    VALUE,
    load_state,
    point_to,
    point_to_best,
    prune_checkpoints,
    save_checkpoint,
    starting_checkpoint,
)
from train.learner.critic import Critic, value_updater_config
from train.learner.policy import Policy
from train.learner.rollout_log import GradedRollouts, RolloutLog
from train.learner.updater import Updater
from train.setup.blocks import Blocks, adopt_block_size
from train.setup.judges import StepJudge
from train.setup.models import frozen_reference, make_model, make_value_model, trained_model_device
from train.setup.process import monitor_of, pick_device, precision, prepare_process, run_folder
from train.setup.prompts import Prompt, completion_text, inference_model, load_prompts, reward_columns, sampling_entries
from train.setup.rewards import evaluates_as_it_trains, reward_of, step_judge_of

logger = logging.getLogger(__name__)


def run(config: Config) -> dict[str, Any] | None:
    """A whole RL run, new or resumed. Returns what the final line says; None for a dry run."""
    prepare_process(config)
    ranks.on_main(check, config)
    if config.dry_run:
        return None
    if ranks.on_main(checks.to_be_prepared, config):
        prepare_model(config)
        prepare_process(config)  # over what the SFT set for itself
    with run_folder(config) as folder:
        rl = Run(config, folder)
        try:
            return rl.loop()
        finally:
            rl.close()


def check(config: Config) -> None:
    """What checks.check looks at, and before that the SFT that makes the model where it is absent."""
    first = preparation(config) if checks.to_be_prepared(config) else None
    if first is not None:
        made = run_path(first) / "ckpt" / first.model.optimized_name
        if find(config.model.pretrained_model).resolve() != made.resolve():
            raise ValueError(
                f"model.pretrained_model={config.model.pretrained_model} is absent, and model.prepare_with="
                f"{config.model.prepare_with} would write {made}: name that folder, or one that is there."
            )
        sft.check(first)
    checks.check(config, first)


class Run:
    """Everything alive during a run; `loop` is the algorithm."""

    def __init__(self, config: Config, folder: RunFolder):
        self.config, self.folder = config, folder
        self.monitor = monitor_of(config, folder)
        self.reward = reward_of(config, config.dataset.data_type) if ranks.is_main() else None
        judge = step_judge_of(config) if ranks.is_main() else None
        resume, with_value = config.experiment.resume, bool(config.model.value_base_model)
        checkpoint = ranks.on_main(starting_checkpoint, folder.checkpoints, resume, RL, with_value)
        device = pick_device(config.model.device)
        self.model = make_model(config, checkpoint, device=trained_model_device(config))
        self.blocks = Blocks.of(config, self.model.spec)
        adopt_block_size(self.model, self.blocks.trained)
        self.precision = precision(config, device)
        apart_on = device if shards_weights(config) else None
        self.sampled_model = inference_model(self.model, config.rollout, self.precision, apart_on)
        accelerator = make_accelerator(self.precision, device, engine_kind(config))
        self.updater = Updater(self.model, accelerator, config)
        seed, deterministic = config.training.seed, config.experiment.deterministic
        (sampling,) = sampling_entries(
            config.rollout, self.model, self.blocks.sampled, seed=seed, deterministic=deterministic
        ).values()
        self.sampler = Sampler(self.sampled_model, sampling)
        self.policy = Policy(
            self.model, self.updater, config, sampling, frozen_reference(config, self.model, self.precision)
        )
        self.critic = self._make_critic(checkpoint)
        self.step_judge = StepJudge(config, self.model, judge) if judge else None
        self.prompts = self._load_prompts(
            config.dataset.train_dataset,
            config.dataset.data_type,
            config.dataset.max_tasks,
            config.rollout,
        )
        self.curriculum = Curriculum(
            [prompt.task.id for prompt in self.prompts],
            seed,
            config.dataset.curriculum,
            (config.training.min_accuracy, config.training.max_accuracy),
        )
        self.eval_entries = sampling_entries(
            config.evaluation, self.model, self.blocks.evaluated, seed=seed, deterministic=deterministic
        )
        self.eval_prompts = self._eval_prompts()
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0}
        if checkpoint is not None:
            self._restore(checkpoint)
        self.sampler.weights_version = self.state["step"]
        self.evaluations = ranks.on_main(self._logs_until, self.state["step"] if checkpoint else -1)
        ranks.on_main(self._best)
        self.rollout_log = RolloutLog(folder, self.state["step"]) if ranks.is_main() else None
        self.started = time.perf_counter() - self.state["seconds"]
        self.monitor.banner(
            f"RL {config.experiment.project}",
            checks.banner_rows(
                config,
                self.model,
                self.sampled_model,
                self.blocks,
                len(self.prompts),
                self.state["step"],
                folder,
                checkpoint,
            ),
        )

    def _restore(self, checkpoint: Path) -> None:
        saved = load_state(checkpoint)
        self.updater.load_state_dict(saved["updater"])
        self.curriculum.load_state_dict(saved["curriculum"])
        if self.critic is not None:
            self.critic.updater.load_state_dict(saved["value_updater"])
        self.state = {name: saved[name] for name in self.state}
        if checkpoint.parent == self.folder.checkpoints:
            keep_rows_per_update(self.config.training, saved)
            ranks.on_main(point_to, checkpoint, *self._link_names())

    def loop(self) -> dict[str, Any]:
        """The whole run. Asked to stop, it drops the rollouts at hand, or finishes the step's updates, and saves."""
        self.done = self.state["step"]
        try:
            self.steps()
        except stopping.Stopped:
            if self.done > self.state["step"]:
                self.save(self.done)
            raise
        return self.finish()

    def steps(self) -> None:
        config, timed, G = self.config, self.monitor.timed, self.config.rollout.num_response_per_task
        self.monitor.begin(self.state["step"])
        if self.evaluation_is_due(self.state["step"]):
            with timed("eval"):
                self.evaluate(self.state["step"])
        for step in range(self.state["step"] + 1, config.experiment.total_step + 1):
            self.monitor.begin(step)
            prompts = [self.prompts[i] for i in self.curriculum.draw(step, config.rollout.num_task_per_step)]
            with timed("stored"):
                graded = self.stored(prompts, step)
            if graded is None:
                with timed("rollout"):
                    rollouts = self.rollout(prompts, step)
                with timed("reward"):
                    texts, rewards = ranks.on_main(self.grade, prompts, rollouts)
                stopping.check()
                scored = self.advantages(rollouts, rewards)
                if config.judge.mode == "process":
                    with timed("judge"):
                        scored = ranks.on_main(self.judged, prompts, rollouts, rewards, scored)
                with timed("stored"):
                    graded = self.store(step, prompts, rollouts, texts, rewards, scored)
            self.curriculum.record([prompt.task.id for prompt in prompts], graded.rewards, G)
            with timed("replay"):
                batch = self.policy.batch(graded.rollouts, graded.scored.advantages)
            value_metrics: dict[str, float] = {}
            if self.critic is not None:
                with timed("value"):
                    batch, value_metrics = self.critic.step(batch, graded.rollouts, step)
            with timed("update"), self.monitor.progress(self.policy.rows_to_train(batch), "update") as progress:
                metrics = self.policy.train(batch, step, progress.advance)
            with timed("sync"):
                self.sampler.update_weights(self.updater.engine.weights())
            ranks.on_main(self.log, step, graded, metrics | value_metrics)
            self.done = step
            if self.save_is_due(step):
                with timed("save"):
                    self.save(step)
            if self.evaluation_is_due(step):
                with timed("eval"):
                    self.evaluate(step)
            stopping.check()

    def keys(self, prompts: Sequence[Prompt], step: int) -> list[Key]:
        G = self.config.rollout.num_response_per_task
        seen: Counter[str] = Counter()
        keys: list[Key] = []
        for prompt in prompts:
            first = G * seen[prompt.task.id]  # a task drawn twice in one step goes on counting
            keys += [(step, prompt.task.id, first + j) for j in range(G)]
            seen[prompt.task.id] += 1
        return keys

    def stored(self, prompts: Sequence[Prompt], step: int) -> GradedRollouts | None:
        """The step's graded rollouts from disk, where an interrupted run left them."""

        def take() -> GradedRollouts | None:
            assert self.rollout_log is not None
            self.weights, G = weights_digest(self.sampled_model), self.config.rollout.num_response_per_task
            asked = [prompt.ids for prompt in prompts for _ in range(G)]
            return self.rollout_log.take(step, self.weights, self.keys(prompts, step), asked)

        found = ranks.on_main(take)
        if found is not None:
            self.monitor.event(f"step {step}: rollouts and rewards are those that the interrupted run left")
        return found

    def store(
        self,
        step: int,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Rollout],
        texts: Sequence[str],
        rewards: Sequence[float | None],
        scored: Credit,
    ) -> GradedRollouts:
        """Puts the step on disk before its updates begin."""
        stats = self.reward.stats if self.reward is not None else {}
        graded = GradedRollouts(rollouts, rewards, scored, stats, self.monitor.seconds("rollout"))

        def put() -> None:
            assert self.rollout_log is not None and self.sampler.config.block_size is not None
            tasks = [prompt.task.id for prompt in prompts for _ in range(len(rollouts) // len(prompts))]
            self.rollout_log.put(step, self.weights, graded, texts, tasks, self.sampler.config.block_size)

        ranks.on_main(put)
        return graded

    def rollout(self, prompts: Sequence[Prompt], step: int) -> list[Rollout]:
        G, keys = self.config.rollout.num_response_per_task, self.keys(prompts, step)
        with self.monitor.progress(len(keys), "rollout") as progress:
            rollouts = sample(self.sampler, [p.ids for p in prompts], G, keys, progress.advance)
        self.sampler.release()  # the updates need the memory
        return rollouts

    def grade(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> tuple[list[str], list[float | None]]:
        G = self.config.rollout.num_response_per_task
        texts = [completion_text(rollout, self.model) for rollout in rollouts]
        assert self.reward is not None
        rewards = self.reward([p.text for p in prompts for _ in range(G)], texts, **reward_columns(prompts, rollouts))
        if self.config.training.truncated == "wrong":
            cut = [rollout.finish_reason == "length" for rollout in rollouts]
            if any(is_cut and reward for is_cut, reward in zip(cut, rewards, strict=True)):
                logger.warning(
                    "answers without a stop had a reward and count as 0 (training.truncated=wrong): raise %s, or set "
                    "training.truncated to keep or drop",
                    self.config.rollout.key("max_new_tokens"),
                )
            rewards = [
                0.0 if is_cut and reward is not None else reward for is_cut, reward in zip(cut, rewards, strict=True)
            ]
        return texts, rewards

    def judged(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], rewards: Sequence[float | None], scored: Credit
    ) -> Credit:
        assert self.step_judge is not None
        return self.step_judge(prompts, rollouts, rewards, scored)

    def advantages(self, rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> Credit:
        training, weight = self.config.training, self.config.reward.speed_weight
        speed = [r.num_response_tokens / max(1, r.num_steps) for r in rollouts]
        return group_advantages(
            rewards,
            self.config.rollout.num_response_per_task,
            kind=training.advantage,
            min_accuracy=training.min_accuracy,
            max_accuracy=training.max_accuracy,
            keep=[training.truncated != "drop" or rollout.finish_reason == "stop" for rollout in rollouts],
            bonus=[
                weight * fast if reward is not None and reward > 0.0 else 0.0
                for fast, reward in zip(speed, rewards, strict=True)
            ],
        )

    def log(self, step: int, graded: GradedRollouts, metrics: dict[str, float]) -> None:
        """The step's line and metrics; a step whose groups all dropped says why it was skipped."""
        rollouts, rewards, scored = graded.rollouts, graded.rewards, graded.scored
        groups = len(rollouts) // self.config.rollout.num_response_per_task
        given = [r for r in rewards if r is not None]
        tokens = sum(r.num_response_tokens for r in rollouts)
        measured = {"reward/mean": float(np.mean(given)), "reward/std": float(np.std(given))} if given else {}
        metrics = metrics | graded.reward_stats | scored.stats | measured | {
            "reward/left_out": float(len(rewards) - len(given)),
            "completion_length": tokens / len(rollouts),
            "truncated": float(np.mean([r.finish_reason == "length" for r in rollouts])),
            "tokens_per_forward": tokens / max(1, sum(r.num_steps for r in rollouts)),
            "tokens_per_second": tokens / graded.seconds,
            "groups": float(groups),
            "weights_version": float(self.sampler.weights_version),
            **{f"groups_dropped/{why}": float(count) for why, count in scored.dropped.items()},
        }  # fmt: skip
        if "loss" not in metrics:
            reasons = [f"{count} of {groups} groups dropped ({why})" for why, count in scored.dropped.items()]
            if metrics["rollouts_skipped"]:
                reasons.append(f"{metrics['rollouts_skipped']:g} rollouts have a non-finite log-probability")
            if self.config.training.truncated == "wrong" and metrics["truncated"]:
                reasons.append(f"{metrics['truncated']:.0%} of the answers have no stop and count as 0")
            self.monitor.event(f"step {step} trains nothing and is skipped: {', '.join(reasons)}")
        self.monitor.step(step, self.config.experiment.total_step, metrics)

    def evaluation_is_due(self, step: int) -> bool:
        experiment = self.config.experiment
        regular = step % experiment.eval_every == 0 or step == experiment.total_step
        wanted = experiment.eval_first if step == 0 else regular
        return wanted and bool(self.eval_prompts) and step not in self.evaluations

    def save_is_due(self, step: int) -> bool:
        experiment = self.config.experiment
        regular = step % experiment.save_every == 0 or step == experiment.total_step
        return regular or (experiment.keep_best and self.evaluation_is_due(step))

    def evaluate(self, step: int) -> None:
        """Every evaluation entry; the first one is the run's headline."""
        evaluation = self.config.evaluation
        reward = self.reward
        if ranks.is_main() and not evaluates_as_it_trains(self.config):
            reward = reward_of(self.config, evaluation.data_type, evaluating=True)
        results = evaluate(
            self.sampled_model,
            self.eval_entries,
            self.eval_prompts,
            reward,
            responses_per_task=evaluation.num_response_per_task,
            monitor=self.monitor,
        )
        if reward is not None and reward is not self.reward:
            reward.close()
        for result in results:
            self.monitor.evaluation(step, result.metrics, name=result.name)
        self.evaluations[step] = {result.name: result.metrics for result in results}
        if ranks.is_main():
            atomic_write_text(self.folder.evaluations, json.dumps(self.evaluations, indent=1) + "\n")
            prune_checkpoints(self.folder.checkpoints, self.config.experiment.keep_last, self._best())

    def save(self, step: int) -> None:
        self.state |= {"step": step, "seconds": time.perf_counter() - self.started}
        state = self.state | {
            "updater": self.updater.state_dict(),
            "curriculum": self.curriculum.state_dict(),
            "rows_per_update": rows_per_update(self.config.training),
        }
        value, (name, value_name) = None, self._link_names()
        if self.critic is not None and value_name is not None:
            state["value_updater"] = self.critic.updater.state_dict()
            value = (self.critic.model, value_name)
        require_equal_weights(self.model, "policy")

        def write() -> None:
            save_checkpoint(self.folder.checkpoints, step, self.model, state, name, value)
            prune_checkpoints(self.folder.checkpoints, self.config.experiment.keep_last, self._best())

        with self._whole_on_main():
            ranks.on_main(write)

    def finish(self) -> dict[str, Any]:
        total = self.config.experiment.total_step
        summary: dict[str, Any] = {"steps": total, "seconds": round(time.perf_counter() - self.started, 1)}
        for when, step in (("before", 0), ("after", total)):
            headline = next(iter(self.evaluations.get(step, {}).values()), {})
            for name in ("accuracy", "stderr", "reward", "length", "tokens_per_forward"):
                summary[f"{name}_{when}"] = headline.get(name)
        summary["model"] = str(self.folder.checkpoints / self.config.model.optimized_name)
        best = self.folder.checkpoints / BEST
        if self.config.experiment.keep_best and best.is_symlink():
            summary["best_model"] = str(best)
        self.monitor.curves()
        self.monitor.final(summary)
        return summary

    def close(self) -> None:
        if self.reward is not None:
            self.reward.close()
        self.monitor.close()

    def _make_critic(self, checkpoint: Path | None) -> Critic | None:
        value = make_value_model(self.config, self.model.spec, checkpoint / VALUE if checkpoint else None)
        if value is None:
            return None
        updater = Updater(value, self.updater.accelerator, value_updater_config(self.config))
        return Critic(value, updater, self.config, self.policy)

    @contextmanager
    def _whole_on_main(self) -> Iterator[None]:
        """While the block runs, rank 0's models have all their weights."""
        with ExitStack() as stack:
            for trained in (self.updater, *([self.critic.updater] if self.critic is not None else [])):
                stack.enter_context(trained.engine.whole_on_main())
            yield

    def _best(self) -> Path | None:
        """Points ckpt/best to the best checkpoint so far and returns it; None where none is to be kept."""
        if not self.config.experiment.keep_best:
            return None
        headlines = {step: next(iter(entries.values())) for step, entries in self.evaluations.items()}
        accuracy = {step: metrics["accuracy"] for step, metrics in headlines.items() if "accuracy" in metrics}
        return point_to_best(self.folder.checkpoints, accuracy)

    def _link_names(self) -> tuple[str, str | None]:
        model = self.config.model
        return model.optimized_name, model.optimized_value_name if model.value_base_model else None

    def _logs_until(self, step: int) -> dict[int, dict[str, dict[str, float]]]:
        """Takes out of evaluations.json and metrics.jsonl what came after `step`; what evaluations are left."""
        path, found = self.folder.evaluations, {}
        if path.is_file():
            found = {int(number): entries for number, entries in json.loads(path.read_text()).items()}
        kept = {number: entries for number, entries in found.items() if number <= step}
        if kept != found:
            atomic_write_text(path, json.dumps(kept, indent=1) + "\n")
        self.folder.drop_after(step, kept)
        return kept

    def _eval_prompts(self) -> list[Prompt]:
        evaluation = self.config.evaluation
        if not evaluation.eval_dataset:
            return []
        return self._load_prompts(evaluation.eval_dataset, evaluation.data_type, evaluation.max_tasks, evaluation)

    def _load_prompts(self, name: str, data_type: str, max_tasks: int, decode: DecodeConfig) -> list[Prompt]:
        return load_prompts(
            self.config.dataset,
            name,
            self.model,
            data_type=data_type,
            max_tasks=max_tasks,
            max_prompt_tokens=self.config.training.max_prompt_len,
            decode=decode,
        )


def preparation(config: Config) -> Config:
    """The SFT config named by model.prepare_with. Seeds, folders, precision and engine (a process has one of each) of
    this run are passed on."""
    words = [
        f"config={config.model.prepare_with}",
        f"training.seed={config.training.seed}",
        f"training.mixed_precision={config.training.mixed_precision}",
        f"dataset.seed={config.dataset.seed}",
        f"dataset.folder={config.dataset.folder}",
        f"experiment.output_dir={config.experiment.output_dir}",
        f"experiment.threads={config.experiment.threads}",
        f"experiment.deterministic={config.experiment.deterministic}",
        f"model.device={config.model.device}",
        f"experiment.deepspeed_file={config.experiment.deepspeed_file or 'null'}",
        f"experiment.processes={config.experiment.processes}",
        f"experiment.num_node={config.experiment.num_node or 'null'}",
        f"experiment.gpu_memory_gib={config.experiment.gpu_memory_gib}",
        f"dry_run={config.dry_run}",
    ]
    return load_config(words)


def prepare_model(config: Config) -> None:
    """Runs the SFT named by model.prepare_with."""
    sft.run(preparation(config))
    if checks.to_be_prepared(config):
        raise ValueError(
            f"{config.model.prepare_with} ran, but model.pretrained_model={config.model.pretrained_model} is still "
            "absent: that config must write its model there (experiment.output_dir, experiment.project)."
        )
