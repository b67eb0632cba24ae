"""Accuracy and speed of a model on a set of tasks, for each way of decoding: inside RL, and as eval.py."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Config
from models import DiffusionLM
from reward.base import Reward
from runtime import ranks
from runtime.files import append_jsonl, atomic_write_text
from runtime.monitor import Monitor
from runtime.run_folder import RunFolder
from runtime.text import print_text
from sample import Rollout, Sampler, SamplingConfig
from train.checks import check_folder, check_prompts, check_room, check_trackers, tasks_of
from train.distributed.sharding import require_equal_weights, sample
from train.learner.picture_log import PictureLog
from train.memory.fit import Fit
from train.memory.report import check_memory
from train.setup.blocks import Blocks, warn_of_block_size
from train.setup.decodings import check_decodings, check_steps, sampling_entries
from train.setup.models import RunModels, make_model, spec_of
from train.setup.pictures import Eyes, check_drawing
from train.setup.process import monitor_of, pick_device, prepare_process, run_folder, sampling_dtype
from train.setup.prompts import Prompt, completion_text, load_prompts, reward_columns, see, tested_source
from train.setup.rewards import check_tasks, reward_of, sandbox_row
from train.setup.sources import pinned, require_as_written

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """One entry's responses (prompt-major, n a prompt), rewards, wall time of sampling, and tokens a block."""

    name: str
    prompts: Sequence[Prompt]
    rollouts: Sequence[Rollout]
    completions: Sequence[str]
    rewards: Sequence[float | None]
    seconds: float
    block_size: int | None

    @property
    def metrics(self) -> dict[str, float]:
        """accuracy (reward >= 1) with its standard error over tasks, pass@k for k = 1, 2, 4, ... and n, avg@n, mean
        reward, lengths and speed; partial, the share of rewards that are neither 0 nor 1, where there are any.

        A reward of None (left out) counts in no average, a task with fewer than k rewards not in pass@k; what would be
        an average of nothing is absent.
        """
        tokens = sum(r.num_response_tokens for r in self.rollouts)
        return self._graded() | {
            "length": tokens / len(self.rollouts),
            "truncated": float(np.mean([r.finish_reason == "length" for r in self.rollouts])),
            "tokens_per_forward": tokens / max(1, sum(r.num_steps for r in self.rollouts)),
            "tokens_per_second": tokens / max(1e-9, self.seconds),
            "tasks": float(len(self.prompts)),
            "left_out": float(sum(r is None for r in self.rewards)),
        }

    def _graded(self) -> dict[str, float]:
        n = len(self.rollouts) // len(self.prompts)
        by_task = [[r for r in self.rewards[i : i + n] if r is not None] for i in range(0, len(self.rewards), n)]
        by_task = [rewards for rewards in by_task if rewards]
        if not by_task:
            return {}
        share = np.array([np.mean([r >= 1.0 for r in rewards]) for rewards in by_task])
        accuracy = float(share.mean())
        return {
            "accuracy": accuracy,
            "stderr": float(share.std(ddof=1) / math.sqrt(len(share))) if len(share) > 1 else 0.0,
            **_pass_at(by_task, n),
            f"avg@{n}": accuracy,
            "reward": float(np.mean([r for rewards in by_task for r in rewards])),
            **_partial([r for rewards in by_task for r in rewards]),
        }

    def scores(self, step: int) -> dict[str, Any]:
        """The line of scores.jsonl: task -> the rewards of its responses in the order of their keys."""
        n = len(self.rollouts) // len(self.prompts)
        by_task = {prompt.task.id: list(self.rewards[i * n : (i + 1) * n]) for i, prompt in enumerate(self.prompts)}
        return {"step": step, "entry": self.name, "scores": by_task}

    def samples(self, with_steps: bool) -> Iterator[dict[str, Any]]:
        """One row a sample for a JSONL file."""
        n = len(self.rollouts) // len(self.prompts)
        for i, (rollout, text, reward) in enumerate(zip(self.rollouts, self.completions, self.rewards, strict=True)):
            row = {
                "entry": self.name,
                "sample": i % n,
                **self.prompts[i // n].row(text),
                "reward": reward,
                "tokens": rollout.num_response_tokens,
                "num_steps": rollout.num_steps,
                "finish_reason": rollout.finish_reason,
            }
            if with_steps:
                row |= {
                    "block_size": self.block_size,
                    "prompt_ids": rollout.prompt_ids,
                    "token_ids": rollout.token_ids,
                    "step_map": rollout.step_map,
                    "logprobs": rollout.logprobs,
                }
            yield row


def _partial(rewards: Sequence[float]) -> dict[str, float]:
    share = float(np.mean([reward not in (0.0, 1.0) for reward in rewards]))
    return {"partial": share} if share else {}


def _pass_at(by_task: Sequence[Sequence[float]], n: int) -> dict[str, float]:
    """pass@k: mean over tasks of the chance that k of a task's graded responses, drawn without replacement, hold one
    that passes: 1 - C(graded - passed, k) / C(graded, k), the unbiased estimator of arXiv:2107.03374."""
    counts = [(len(rewards), sum(r >= 1.0 for r in rewards)) for rewards in by_task]
    found = {}
    for k in sorted({*(2**i for i in range(n.bit_length())), n}):
        chances = [
            1.0 - math.comb(graded - passed, k) / math.comb(graded, k) for graded, passed in counts if graded >= k
        ]
        if chances:
            found[f"pass@{k}"] = float(np.mean(chances))
    return found


@dataclass(frozen=True)
class EvaluationSetup:
    """The model that samples, its prompts, and by name each way of decoding them."""

    model: DiffusionLM
    prompts: Sequence[Prompt]
    decodings: Mapping[str, SamplingConfig]
    responses_per_task: int
    eyes: Eyes


def evaluate(setup: EvaluationSetup, reward: Reward | None, monitor: Monitor) -> list[Evaluation]:
    """Samples under every decoding over all ranks and grades on rank 0, which has the reward. Keys are (eval, task,
    sample): the same randomness at every call, so that changes show."""
    results = []
    prompts, n = see(setup.prompts, setup.eyes), setup.responses_per_task
    keys = [("eval", p.task.id, j) for p in prompts for j in range(n)]
    for name, config in setup.decodings.items():
        sampler = Sampler(setup.model, config)
        with monitor.progress(len(keys), f"eval {name}") as progress:
            start = time.perf_counter()
            rollouts = sample(sampler, [p.sampled for p in prompts], n, keys, progress.advance)
            seconds = time.perf_counter() - start
        completions = [completion_text(rollout, setup.model) for rollout in rollouts]
        texts = [p.text for p in prompts for _ in range(n)]
        columns = reward_columns(prompts, rollouts, setup.model)
        rewards = ranks.on_main(_grade, reward, texts, completions, columns)
        if all(reward is None for reward in rewards):
            logger.warning(
                "eval %s: no response has a reward (%d are left out): no accuracy is given", name, len(rewards)
            )
        results.append(Evaluation(name, prompts, rollouts, completions, rewards, seconds, config.block_size))
    return results


def _grade(
    reward: Reward | None, texts: list[str], completions: list[str], columns: dict[str, list[Any]]
) -> list[float | None]:
    assert reward is not None
    return reward(texts, completions, **columns)


def run(config: Config) -> dict[str, Any] | None:
    """eval.py: every entry of the rollout section on dataset.eval_dataset. Returns metrics by entry; None for a dry
    run.

    Writes samples.jsonl and results.json into the run's folder; an earlier evaluation of the same config is replaced.
    """
    prepare_process(config)
    folder_of_model, reward = ranks.on_main(check, config), None
    if config.dry_run:
        return None
    config = ranks.on_main(pinned, config)
    device, fit = pick_device(config.model.device), Fit.of(config, RunModels.of(config, spec_of(config), "eval"))
    model = make_model(config, dtype=sampling_dtype(config, device), new_adapters=False)
    require_equal_weights(model, "model")
    blocks = Blocks.of(config, model.spec, "eval")
    decodings = sampling_entries(
        *(fit.config.rollout, model, blocks.sampled),
        seed=config.training.seed,
        deterministic=config.experiment.deterministic,
    )
    for block_size in blocks.sampled:
        warn_of_block_size(block_size, model.spec)
    prompts = load_prompts(config, tested_source(config), model)
    setup = EvaluationSetup(model, prompts, decodings, config.rollout.num_response_per_task, Eyes.of(config, model))
    with run_folder(config, "eval") as folder, ExitStack() as stack:
        if ranks.is_main():
            folder.drop_after(-1)
            reward = stack.enter_context(reward_of(config, config.dataset.data_type, evaluating=True))
        monitor = monitor_of(config, folder, "eval")
        rows = _banner_rows(config, setup, folder_of_model) | fit.rows(model.device)
        monitor.banner(f"eval {config.experiment.project}", rows)
        return ranks.on_main(_report, config, folder, monitor, evaluate(setup, reward, monitor))


def check(config: Config) -> Path:
    """Everything that can be known to fail before a model is loaded; the model's folder. A dry run prints sizes."""
    pick_device(config.model.device)
    require_as_written(spec := spec_of(config))
    check_decodings(config.rollout, config.evaluation)
    check_drawing(config, config.rollout, spec.family)
    check_steps(config.rollout, Blocks.of(config, spec, "eval").sampled)
    check_room(spec, config.rollout)
    name, data_type = config.dataset.eval_dataset, config.dataset.data_type
    tasks = tasks_of(config, name, "dataset.eval_dataset", data_type, spec.family)
    check_prompts(config, tested_source(config), spec, tasks)
    check_folder(config, "eval")
    check_trackers(config)
    with reward_of(config, config.dataset.data_type, evaluating=True) as reward:
        check_tasks(reward, tasks, "dataset.eval_dataset")
    if config.dry_run:
        _print_plan(config, len(tasks))
    check_memory(config, RunModels.of(config, spec, "eval"))
    return spec.folder


def _print_plan(config: Config, tasks: int) -> None:
    """The arithmetic of an evaluation, for a dry run."""
    count = min(tasks, config.dataset.max_tasks or tasks)
    entries = max((len(v) for v in config.rollout.parallel_lists().values()), default=1)
    each = config.rollout.num_response_per_task
    print_text(f"dry run of {config.experiment.project}: everything named exists and fits together")
    print_text(
        f"  data    {config.dataset.eval_dataset}: {count:,} tasks x {each} responses x {entries} entries = "
        f"{count * each * entries:,} responses of up to {config.rollout.max_new_tokens} tokens"
    )


def _report(config: Config, folder: RunFolder, monitor: Monitor, results: Sequence[Evaluation]) -> dict[str, Any]:
    samples = folder.path / "samples.jsonl"
    samples.unlink(missing_ok=True)
    for result in results:
        PictureLog(folder.path).add(prompt.images for prompt in result.prompts)
        append_jsonl(samples, result.samples(config.rollout.output_unmasking_history))
    append_jsonl(folder.scores, [result.scores(0) for result in results])
    metrics: dict[str, Any] = {result.name: result.metrics for result in results}
    atomic_write_text(folder.path / "results.json", json.dumps(metrics, indent=2) + "\n")
    for result in results:
        monitor.evaluation(0, result.metrics, name=result.name, quiet=True)
    monitor.event(table(metrics))
    monitor.final(metrics)
    monitor.close()
    return metrics


def table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Entries by metrics, aligned; "-" where an entry has no such number."""
    names = max((list(entry) for entry in metrics.values()), key=len)
    rows = [
        ["", *metrics],
        *([name, *(f"{entry[name]:.4g}" if name in entry else "-" for entry in metrics.values())] for name in names),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)


def _banner_rows(config: Config, setup: EvaluationSetup, folder_of_model: Path) -> dict[str, str]:
    """What the start of an evaluation shows."""
    model = setup.model
    return {
        "model": f"{folder_of_model} ({model.family}, {sum(p.numel() for p in model.parameters()):,} parameters)",
        "device": f"{model.device}, {str(model.dtype).removeprefix('torch.')}",
        "tasks": f"{config.dataset.eval_dataset}: {len(setup.prompts):,}",
        "samples": f"{setup.responses_per_task} a task",
        "entries": ", ".join(setup.decodings),
        **sandbox_row(config, config.dataset.data_type),
        "seed": str(config.training.seed),
    }
