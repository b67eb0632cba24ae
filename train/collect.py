"""The graded rollouts of an RL step: drawn, sampled, graded and credited, or read from disk after a kill.

Shapes: G responses of a prompt.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

import models
from configs.schema import Config
from runtime import ranks, stopping
from runtime.monitor import Monitor
from sample import Rollout, Sampler
from sample.rollout import Key
from train.algorithm.advantages import Credit, Speed, group_advantages
from train.algorithm.curriculum import Curriculum
from train.distributed.sharding import sample, weights_digest
from train.edits import edit_metrics, surprisals
from train.figures import sources_of
from train.grading import Grading, Scores
from train.learner.rollout_log import GradedRollouts
from train.setup.doors import advantage_of, objective_of
from train.setup.pictures import Eyes
from train.setup.prompts import Prompt, see
from train.setup.train_sets import TrainTasks


@dataclass(frozen=True)
class StepRollouts:
    """A step's rollouts, prompt-major. weights: digest of those that sampled them; seconds: what sampling took;
    graded: as an interrupted run left them on disk."""

    step: int
    prompts: Sequence[Prompt]
    rollouts: Sequence[Rollout]
    weights: str
    seconds: float
    graded: GradedRollouts | None = None

    def joined(self, more: "StepRollouts") -> "StepRollouts":
        """These, then those of further prompts of the step."""
        prompts, rollouts = [*self.prompts, *more.prompts], [*self.rollouts, *more.rollouts]
        return replace(self, prompts=prompts, rollouts=rollouts, seconds=self.seconds + more.seconds)


class Collector:
    """Makes the graded rollouts of a step. Every rank calls every method and gets the same; rank 0 alone grades, judges
    and writes.

    A step that an interrupted run graded already is taken from disk, as long as this run would sample the same."""

    def __init__(self, config: Config, sampler: Sampler, tasks: TrainTasks, grading: Grading, monitor: Monitor):
        self.config, self.sampler, self.prompts = config, sampler, tasks.prompts
        self.grading, self.monitor = grading, monitor
        self.group_size = config.rollout.num_response_per_task
        training = config.training
        self.advantage, self.eyes = advantage_of(training), Eyes.of(config, sampler.model)
        self.taught = objective_of(training).needs.teacher
        self._shown: dict[str, models.Prompt] = {}
        self.curriculum = Curriculum(
            [prompt.task.id for prompt in self.prompts],
            training.seed,
            config.dataset.curriculum,
            (training.min_accuracy, training.max_accuracy),
            tasks.sets,
        )
        by_column = sources_of(self.prompts, config.dataset.source_column)
        found = {prompt.task.id: prompt.of or name for prompt, name in zip(self.prompts, by_column, strict=True)}
        self.sources = {task: name for task, name in found.items() if name}

    def draw(self, step: int) -> list[Prompt]:
        """The prompts of a step."""
        return [self.prompts[i] for i in self.curriculum.draw(step, self.config.rollout.num_task_per_step)]

    def rollouts(self, prompts: Sequence[Prompt], step: int) -> StepRollouts:
        """The step's rollouts: from disk, or sampled. A prompt whose pictures cannot be used is left out; where that is
        every one, there are none."""
        self._shown.clear()
        prompts = self._seen(prompts)
        with self.monitor.timed("resume"):
            weights, graded = ranks.on_main(self._left_on_disk, prompts, step)
        if graded is not None:
            self.monitor.event(f"step {step}: rollouts and rewards are those that the interrupted run left")
            return StepRollouts(step, prompts, graded.rollouts, weights, graded.seconds, graded)
        started = perf_counter()
        rollouts = self.sample(prompts, step)
        return StepRollouts(step, prompts, rollouts, weights, perf_counter() - started)

    def shown(self, rollouts: Sequence[Rollout]) -> dict[Key, models.Prompt]:
        """The prompts of those of the step's rollouts that have features of pictures, by their keys."""
        with_features = [rollout for rollout in rollouts if min(rollout.prompt_ids, default=0) < 0]
        tasks = {str(rollout.key[1]) for rollout in with_features}
        self._seen([prompt for prompt in self.prompts if prompt.task.id in tasks - self._shown.keys()])
        of_task = {rollout.key: self._shown.get(str(rollout.key[1])) for rollout in with_features}
        return {key: prompt for key, prompt in of_task.items() if prompt is not None}

    def _seen(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """The prompts with their pictures encoded, kept for the step."""
        if not any(prompt.picture_tokens for prompt in prompts):
            return prompts
        with self.monitor.timed("pictures"):
            prompts = see(prompts, self.eyes, needed=False)
        self._shown.update({prompt.task.id: prompt.seen for prompt in prompts if prompt.seen is not None})
        return prompts

    def sample(self, prompts: Sequence[Prompt], step: int) -> list[Rollout]:
        """G rollouts of each prompt, by all ranks."""
        if not prompts:
            return []
        keys = self._keys(prompts, step)
        with self.monitor.progress(len(keys), "rollout") as progress:
            rollouts = sample(self.sampler, [p.sampled for p in prompts], self.group_size, keys, progress.advance)
        if not self.sampler.keeps_slots:
            self.sampler.release()  # the updates need the memory
        return rollouts

    def grade(self, sampled: StepRollouts) -> GradedRollouts:
        """The step's rollouts with rewards and credit, safe on disk."""
        graded = self._graded(sampled) if sampled.graded is None else self._still_shown(sampled.graded)
        tasks = [str(rollout.key[1]) for rollout in graded.rollouts[:: self.group_size]]
        self.curriculum.record(tasks, graded.rewards, self.group_size)
        return graded

    def _still_shown(self, graded: GradedRollouts) -> GradedRollouts:
        """Of an interrupted run; rollouts whose pictures cannot be used any more are left out of training."""
        shown, values = self.shown(graded.rollouts), list(graded.credit.values)
        for i, rollout in enumerate(graded.rollouts):
            if min(rollout.prompt_ids, default=0) < 0 and rollout.key not in shown:
                values[i] = None
        return replace(graded, credit=replace(graded.credit, values=values))

    def _graded(self, sampled: StepRollouts) -> GradedRollouts:
        scores = ranks.on_main(self._scores, sampled.prompts, sampled.rollouts)
        stopping.check()
        for draw in range(1, self.config.rollout.refill_draws + 1):
            more = self._refill(sampled, scores, draw)
            if not more.prompts:
                break
            scores = scores.joined(ranks.on_main(self._scores, more.prompts, more.rollouts))
            sampled = sampled.joined(more)
            stopping.check()
        rewards, stats = scores.rewards, scores.stats
        credit = self._credit(sampled.rollouts, scores)
        if self.config.judge.mode == "process" and sampled.rollouts:
            with self.monitor.timed("judge"):
                credit = ranks.on_main(self._judged, sampled, rewards, credit)
        graded = GradedRollouts(sampled.rollouts, rewards, credit, stats, sampled.seconds)
        with self.monitor.timed("log"):
            ranks.on_main(self._put_on_disk, sampled, graded, scores)
        return graded

    def _refill(self, sampled: StepRollouts, scores: Scores, draw: int) -> StepRollouts:
        """Rollouts of further tasks, one for each group that teaches nothing; none where all do, where no task is left,
        or where groups have no reward at all, which no other task would cure."""
        dropped = self._credit(sampled.rollouts, scores).dropped
        kept = len(sampled.prompts) - dropped.total()
        missing = self.config.rollout.num_task_per_step - kept - dropped["unrewarded"]
        taken = {prompt.task.id for prompt in sampled.prompts}
        refill = self.curriculum.refill(sampled.step, draw, max(0, missing), taken)
        prompts = self._seen([self.prompts[i] for i in refill])
        started = perf_counter()
        with self.monitor.timed("refill"):
            rollouts = self.sample(prompts, sampled.step)
        return StepRollouts(sampled.step, prompts, rollouts, sampled.weights, perf_counter() - started)

    def _keys(self, prompts: Sequence[Prompt], step: int) -> list[Key]:
        seen: Counter[str] = Counter()
        keys: list[Key] = []
        for prompt in prompts:
            first = self.group_size * seen[prompt.task.id]  # a task drawn twice in one step continues the count
            keys += [(step, prompt.task.id, first + j) for j in range(self.group_size)]
            seen[prompt.task.id] += 1
        return keys

    def _left_on_disk(self, prompts: Sequence[Prompt], step: int) -> tuple[str, GradedRollouts | None]:
        """Digest of the weights that would sample now, and what they and these prompts gave an interrupted run."""
        assert self.grading.log is not None
        weights = weights_digest(self.sampler.model)
        if not prompts:
            return weights, None  # and what it has of later steps stays
        prompt_ids = [prompt.ids for prompt in prompts for _ in range(self.group_size)]
        refilled = self.config.rollout.refill_draws > 0
        return weights, self.grading.log.take(step, weights, self._keys(prompts, step), prompt_ids, refilled)

    def _put_on_disk(self, sampled: StepRollouts, graded: GradedRollouts, scores: Scores) -> None:
        """Writes the step's rows, and shows some of them now and then."""
        assert self.grading.log is not None and self.sampler.config.block_size is not None
        prompts = [prompt for prompt in sampled.prompts for _ in range(self.group_size)]
        rows = [prompt.row(text) for prompt, text in zip(prompts, scores.texts, strict=True)]
        self.grading.log.pictures.add(prompt.images for prompt in sampled.prompts)
        if given := scores.parts:
            parts = (dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True))
            rows = [row | {"rewards": part} for row, part in zip(rows, parts, strict=True)]
        self.grading.log.put(sampled.step, sampled.weights, graded, rows, self.sampler.config.block_size)
        every = self.config.tracking.sample_every
        if every and sampled.step % every == 0 and rows:
            shown = zip(rows, graded.rewards, strict=True)
            self.monitor.samples(sampled.step, [row | {"reward": reward} for row, reward in shown])

    def _scores(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> Scores:
        return self.grading.scores(prompts, rollouts, self.sampler.model, self.config)

    def _credit(self, rollouts: Sequence[Rollout], scores: Scores) -> Credit:
        training, reward, rewards = self.config.training, self.config.reward, scores.rewards
        keep = [training.truncated != "drop" or rollout.finish_reason == "stop" for rollout in rollouts]
        if self.taught:
            return Credit([0.0 if kept else None for kept in keep], Counter(), "advantage")
        speed = [r.num_response_tokens / max(1, r.num_steps) for r in rollouts]
        bonus = [
            reward.speed_weight * fast if given is not None and given > 0.0 else 0.0
            for fast, given in zip(speed, rewards, strict=True)
        ]
        apart = Speed(speed, reward.speed_weight, reward.min_speed_spread, reward.speed_goal == "apart_right")
        return group_advantages(
            rewards,
            self.group_size,
            advantage=self.advantage,
            parts=scores.of_each() if reward.combine == "normalise" else None,
            weights=reward.weights,
            kind="reward" if self.config.model.value_base_model else "advantage",
            accuracy_band=(training.min_accuracy, training.max_accuracy),
            keep=keep,
            bonus=bonus if reward.speed_goal == "bonus" else None,
            speed=None if reward.speed_goal == "bonus" else apart,
            whiten=training.whiten_advantages,
        )

    def _judged(self, sampled: StepRollouts, rewards: Sequence[float | None], credit: Credit) -> Credit:
        assert self.grading.judge is not None
        return self.grading.judge(sampled.prompts, sampled.rollouts, rewards, credit)


def rollout_metrics(
    graded: GradedRollouts, group_size: int, sources: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Figures of a step's rollouts and what they earned; of a step without any, that it has none. sources: ids of tasks
    -> where they are from, whose rollouts get figures of their own."""
    rollouts, rewards, credit = graded.rollouts, graded.rewards, graded.credit
    if not rollouts:
        return {"groups": 0.0}
    given = [r for r in rewards if r is not None]
    tokens = sum(r.num_response_tokens for r in rollouts)
    measured = {"reward/mean": float(np.mean(given)), "reward/std": float(np.std(given))} if given else {}
    return {
        **graded.reward_stats,
        **credit.stats,
        **measured,
        "reward/left_out": float(len(rewards) - len(given)),
        "completion_length": tokens / len(rollouts),
        "truncated": float(np.mean([r.finish_reason == "length" for r in rollouts])),
        **_entropy(rollouts),
        **edit_metrics(rollouts),
        "tokens_per_forward": tokens / max(1, sum(r.num_steps for r in rollouts)),
        "tokens_per_second": tokens / graded.seconds,
        "groups": float(len(rollouts) // group_size),
        **{f"groups_dropped/{why}": float(count) for why, count in credit.dropped.items()},
        **_by_source(graded, sources or {}),
    }


def _by_source(graded: GradedRollouts, sources: Mapping[str, str]) -> dict[str, float]:
    """Mean reward, share of rewards of 1 and more, mean length and responses of each source in the step."""
    found: dict[str, float] = {}
    of = [sources.get(str(rollout.key[1]), "") for rollout in graded.rollouts]
    for name in sorted({*of} - {""}):
        which = [i for i, source in enumerate(of) if source == name]
        given = [reward for i in which if (reward := graded.rewards[i]) is not None]
        if given:
            found[f"reward/mean({name})"] = float(np.mean(given))
            found[f"accuracy({name})"] = float(np.mean([reward >= 1.0 for reward in given]))
        found[f"completion_length({name})"] = float(np.mean([graded.rollouts[i].num_response_tokens for i in which]))
        found[f"responses({name})"] = float(len(which))
    return found


def _entropy(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Mean of -log p over the sampled tokens, nats: at temperature 1 and unfiltered, an unbiased estimate of the mean
    entropy of the distributions that they were drawn from. Of every choice that was made, where tokens are edited."""
    surprisal = surprisals(rollouts)
    finite = surprisal[np.isfinite(surprisal)]
    return {"entropy": float(finite.mean())} if finite.size else {}
