"""Supervised fine-tuning: the same packed rows as RL, from masks that noise or a given trace draw.

Run it as `python train/sft.py config=configs/sft_tiny.yaml`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from configs.schema import Config, TrainingConfig
from data.tasks import Example, load_examples
from models import DiffusionLM
from runtime import ranks, stopping
from runtime.monitor import Monitor
from runtime.run_folder import RunFolder
from sample import Rollout
from train import checks
from train.algorithm.masking import SFT_METHODS
from train.algorithm.objectives import Metrics, negative_log_likelihood, per_token, token_weights
from train.algorithm.replay import MicroBatch, Replayer, TrainingSample, replay
from train.distributed.accelerator import make_accelerator
from train.distributed.kind import check_engine, engine_kind, engine_line
from train.distributed.sharding import keep_rows_per_update, require_equal_weights, rows_per_update
from train.learner.checkpoint import SFT, load_state, point_to, prune_checkpoints, save_checkpoint, starting_checkpoint
from train.learner.updater import Updater, UpdateStats, scheduled
from train.memory.report import check_memory
from train.setup.blocks import Blocks, adopt_block_size
from train.setup.models import make_model, spec_of, trained_model_device
from train.setup.process import monitor_of, pick_device, precision, prepare_process, run_folder
from train.setup.prompts import drop_over_long, tokenizer_of

logger = logging.getLogger(__name__)

SHOWN = ("loss", "nll", "grad_norm", "learning_rate", "trained_tokens")


@dataclass(frozen=True)
class Sample:
    """One example as ids: prompt, answer with its end id, and for `trace` the step of each answer id."""

    index: int
    prompt_ids: list[int]
    answer_ids: list[int]
    step_map: list[int] | None


def run(config: Config) -> dict[str, Any] | None:
    """A whole SFT run, new or resumed (from the last saved epoch). Returns what the final line says; None for a dry
    run."""
    prepare_process(config)
    examples = ranks.on_main(check, config)
    if config.dry_run:
        return None
    with run_folder(config) as folder:
        monitor = monitor_of(config, folder)
        try:
            return _train(config, folder, monitor, examples)
        finally:
            monitor.close()


def _updates(config: Config, examples: int) -> tuple[int, int]:
    """Examples an update, and updates an epoch."""
    per_update = min(examples, rows_per_update(config.training))
    return per_update, -(-examples // per_update)


def check(config: Config) -> list[Example]:
    """The examples, after everything that can be known to fail before a model is loaded. A dry run prints sizes."""
    training = config.training
    if training.method not in SFT_METHODS:
        raise ValueError(
            f"training.method={training.method!r} is not an SFT method; choose from {', '.join(SFT_METHODS)}."
        )
    if config.experiment.keep_best:
        raise ValueError("experiment.keep_best: fine-tuning has no evaluations to tell the best by; leave it out.")
    if training.lower_p > training.upper_p:
        raise ValueError(f"training.lower_p={training.lower_p} exceeds training.upper_p={training.upper_p}.")
    pick_device(config.model.device)
    spec = spec_of(config)
    check_engine(config, spec.folder)
    if training.method == "ar" and not spec.family.logit_shift:
        raise ValueError(
            "training.method=ar needs a model that predicts the next token (Dream, DiffuCoder); choose semi-ar or "
            "random_masking."
        )
    path = checks.check_dataset(config, config.dataset.optimization_data, "dataset.optimization_data")
    checks.check_start(config, SFT)
    examples = load_examples(path, columns=config.dataset.columns)
    examples = examples[: config.dataset.max_tasks] if config.dataset.max_tasks else examples
    if config.dry_run:
        per_update, updates = _updates(config, len(examples))
        print(f"dry run of {config.experiment.project}: everything named exists and fits together")
        print(f"  data    {config.dataset.optimization_data}: {len(examples):,} examples")
        print(f"  update  {per_update} examples, {updates} updates an epoch, {config.training.num_train_epochs} epochs")
    check_memory(config, spec.folder, "sft", _answer_tokens(training, examples))
    return examples


def _answer_tokens(training: TrainingConfig, examples: Sequence[Example]) -> int:
    """The longest answer, before any is tokenised: about three characters a token."""
    longest = 1 + max((len(example.response) for example in examples), default=0) // 3
    return min(longest, training.max_gen_length or longest)


def _train(config: Config, folder: RunFolder, monitor: Monitor, examples: Sequence[Example]) -> dict[str, Any]:
    experiment = config.experiment
    checkpoint = ranks.on_main(starting_checkpoint, folder.checkpoints, experiment.resume, SFT)
    device = pick_device(config.model.device)
    model = make_model(config, checkpoint, device=trained_model_device(config))
    blocks = Blocks.of(config, model.spec, "sft")
    config = replace(config, training=for_model(config.training, model, blocks.trained))
    training = config.training
    adopt_block_size(model, blocks.trained)
    samples = tokenise(examples, model, config)
    updater = Updater(model, make_accelerator(precision(config, device), device, engine_kind(config)), config)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "nll": 0.0}
    if checkpoint is not None:
        state = _restore(config, folder, updater, checkpoint)
    ranks.on_main(folder.drop_after, state["step"])
    started = time.perf_counter() - state["seconds"]
    per_update, updates_per_epoch = _updates(config, len(samples))
    total = updates_per_epoch * training.num_train_epochs
    window = max(len(sample.answer_ids) for sample in samples)
    _banner(monitor, config, model, samples, per_update, total, folder, checkpoint)
    step = state["step"]
    stats = UpdateStats()

    def save() -> dict[str, Any]:
        now = {"step": step, "seconds": time.perf_counter() - started, "nll": stats.per_token("nll")}
        with monitor.timed("save"):
            _save(config, folder, model, updater, now)
        return now

    for epoch in range(step // updates_per_epoch, training.num_train_epochs):
        order = np.random.default_rng([training.seed, epoch]).permutation(len(samples))
        for first in range((step - epoch * updates_per_epoch) * per_update, len(samples), per_update):
            stats = UpdateStats()
            chosen = [samples[i] for i in order[first : first + per_update]]
            rows = [row for sample in chosen for row in make_rows(sample, model, training, epoch, window)]
            monitor.begin(step + 1)
            with monitor.timed("update"):
                updater.set_rate(scheduled(config.lr_scheduler, step, total))
                _update(updater, rows, training, window, model.attention == "block", stats)
            step += 1
            _log(monitor, step, total, stats, rows, updater.rate)
            try:
                stopping.check()
            except stopping.Stopped:
                save()
                raise
        if (epoch + 1) % experiment.save_every == 0 or epoch + 1 == training.num_train_epochs:
            state = save()
    summary = {
        "steps": total,
        "nll": state["nll"],
        "seconds": round(time.perf_counter() - started, 1),
        "model": str(folder.checkpoints / config.model.optimized_name),
    }
    monitor.curves()
    monitor.final(summary)
    return summary


def _restore(config: Config, folder: RunFolder, updater: Updater, checkpoint: Path) -> dict[str, Any]:
    """Puts the updater where the checkpoint was; returns the loop's state there."""
    saved = load_state(checkpoint)
    updater.load_state_dict(saved["updater"])
    if checkpoint.parent == folder.checkpoints:
        keep_rows_per_update(config.training, saved)
        ranks.on_main(point_to, checkpoint, config.model.optimized_name, None)
    return {name: saved[name] for name in ("step", "seconds", "nll")}


def _save(config: Config, folder: RunFolder, model: DiffusionLM, updater: Updater, state: dict[str, Any]) -> None:
    more = state | {"updater": updater.state_dict(), "rows_per_update": rows_per_update(config.training)}
    require_equal_weights(model, "model")
    with updater.engine.whole_on_main():
        ranks.on_main(save_checkpoint, folder.checkpoints, state["step"], model, more, config.model.optimized_name)
    if ranks.is_main():
        prune_checkpoints(folder.checkpoints, config.experiment.keep_last)


def _update(
    updater: Updater,
    rows: Sequence[TrainingSample],
    training: TrainingConfig,
    window: int,
    block: bool,
    stats: UpdateStats,
) -> None:
    """window: tokens of the longest answer of all, which `constant` divides by where no length is set."""
    weights = token_weights(
        rows,
        training.normalization,
        max_gen_length=training.max_gen_length or window,
        longest_response=max(int(row.canvas_index.max()) + 1 for row in rows) if block else None,
    )

    def loss_of(logp_N: Tensor, micro: MicroBatch) -> tuple[Tensor, Metrics]:
        return negative_log_likelihood(logp_N, per_token(weights.policy, micro, logp_N.device))

    updater.update(rows, range(len(rows)), loss_of, stats)


def tokenise(examples: Sequence[Example], model: DiffusionLM, config: Config) -> list[Sample]:
    """Examples as ids. The end id is appended where the answer does not end with one. Over-long prompts and examples
    that hold the mask token are dropped, over-long answers cut, all counted in warnings. ValueError where a step_map
    does not fit its answer."""
    tokenizer, training = tokenizer_of(model), config.training
    samples, long_prompts, cut, masked = [], 0, 0, 0
    for i, example in enumerate(examples):
        prompt = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(example.response, add_special_tokens=False)["input_ids"]
        steps = example.step_map
        if training.method == "trace":
            steps = _checked_steps(steps, len(answer), i)
        if not answer or answer[-1] not in model.eos_ids:
            answer = [*answer, model.end_of_answer_id]
            steps = [*steps, max(steps, default=0) + 1] if steps is not None else None
        if not prompt or len(prompt) > training.max_prompt_len:
            long_prompts += 1
            continue
        if model.mask_id in prompt or model.mask_id in answer:
            masked += 1
            continue
        if training.max_gen_length and len(answer) > training.max_gen_length:
            cut += 1
            answer = answer[: training.max_gen_length]
        samples.append(Sample(i, prompt, answer, steps[: len(answer)] if steps is not None else None))
    if long_prompts:
        drop_over_long(
            f"SFT data: {long_prompts} of {len(examples)} prompts are empty or exceed training.max_prompt_len="
            f"{training.max_prompt_len}",
            config.dataset,
        )
    if masked:
        logger.warning("SFT data: %d of %d examples hold the mask token: dropped", masked, len(examples))
    if cut:
        logger.warning(
            "SFT data: %d answers are cut to training.max_gen_length=%s tokens", cut, training.max_gen_length
        )
    if not samples:
        raise ValueError(
            f"no SFT example is left of {len(examples)}: raise training.max_prompt_len={training.max_prompt_len}."
        )
    return samples


def for_model(training: TrainingConfig, model: DiffusionLM, block_size: int) -> TrainingConfig:
    """The settings with the block size in force, and under full attention with one noisy copy of a block in semi-ar:
    each is a row of its own there, and dLLM-RL too has one a block."""
    alone = model.attention == "full" and training.method == "semi-ar"
    return replace(
        training,
        block_size=block_size,
        mask_times_per_sample=1 if alone else training.mask_times_per_sample,
    )


def make_rows(
    sample: Sample, model: DiffusionLM, training: TrainingConfig, epoch: int, window: int
) -> list[TrainingSample]:
    """The rows of one sample: masks drawn from (seed, epoch, sample), or its own trace.

    Behind the answer stands filling that is masked, and trained up to training.post_num: to the end of the block for
    block families, to `window` answer tokens under full attention, as a sampler would see it.
    """
    b = training.block_size or model.spec.schedule_block_size
    P, R = len(sample.prompt_ids), len(sample.answer_ids)
    pad = model.pad_id if model.pad_id is not None else model.end_of_answer_id
    filling = -(P + R) % b if model.attention == "block" else max(0, window - R)
    traced = training.method == "trace"
    steps = sample.step_map if traced and sample.step_map is not None else [1] * R
    canvas = Rollout(
        key=(sample.index,),
        prompt_ids=sample.prompt_ids,
        canvas_ids=[*sample.answer_ids, *[pad] * filling],
        canvas_step_map=[*steps, *[0 if traced else 1] * filling],
        canvas_logprobs=[0.0] * (R + filling),
        num_response_tokens=R,
        finish_reason="stop",
        num_steps=max(steps),
    )
    rng = np.random.default_rng([training.seed, epoch, sample.index])
    replayer = Replayer(model.attention, model.logit_shift, model.mask_id, b)
    return replay(canvas, replayer, training, method=SFT_METHODS[training.method], pad_id=pad, rng=rng)


def _checked_steps(steps: list[int] | None, tokens: int, index: int) -> list[int]:
    if steps is None or len(steps) != tokens or min(steps, default=1) < 0:
        got = "none" if steps is None else f"{len(steps)} entries, smallest {min(steps, default=0)}"
        raise ValueError(
            f"example {index}: training.method=trace needs a step_map of {tokens} steps >= 0, "
            f"one a response token; got {got}."
        )
    low = min(steps, default=0)
    return [s - low + 1 for s in steps]


def _log(
    monitor: Monitor, step: int, total: int, stats: UpdateStats, rows: Sequence[TrainingSample], rate: float
) -> None:
    metrics = {
        "loss": stats.sums.get("loss", 0.0),
        "nll": stats.per_token("nll"),
        "grad_norm": float(np.mean(stats.grad_norms)) if stats.grad_norms else 0.0,
        "learning_rate": rate,
        "trained_tokens": stats.sums.get("tokens", 0.0),
        "packed_tokens": float(stats.packed_tokens),
        "updates_skipped": float(stats.skipped),
    }
    monitor.step(step, total, metrics, SHOWN, quiet=step % max(1, total // 20) != 0 and step != total)


def _banner(
    monitor: Monitor,
    config: Config,
    model: DiffusionLM,
    samples: Sequence[Sample],
    per_update: int,
    total: int,
    folder: RunFolder,
    checkpoint: Path | None,
) -> None:
    training = config.training
    monitor.banner(
        f"SFT {config.experiment.project}",
        {
            "model": checks.model_line(config, model),
            "device": f"{model.device}, {checks.precision_line(config, model)}",
            "examples": f"{config.dataset.optimization_data}: {len(samples):,}",
            "update": f"{per_update} examples x {training.mask_times_per_sample} noisy copies",
            "steps": f"{total} updates in {training.num_train_epochs} epochs",
            "method": f"{training.method}, block {training.block_size}, {training.normalization}",
            "engine": engine_line(config),
            "seed": str(training.seed),
            "folder": f"{folder.path}" + (f" (resumed from {checkpoint.name})" if checkpoint else ""),
        },
    )


if __name__ == "__main__":
    from train.command import main

    main("train.sft", "python train/sft.py config=configs/NAME.yaml [a.b=c ...]")
