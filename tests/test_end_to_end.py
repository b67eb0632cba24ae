"""Whole runs of train/sft.py, rl.py and eval.py on a tiny random model."""

import itertools
import json
import logging
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import yaml
from end_to_end import EVAL, RL, SFT, Workshop, read_jsonl, text_checkpoint, without_clock
from helpers import thinned
from transformers.utils import logging as transformers_logging

from configs import load_config
from configs.load import REPOSITORY
from models import load_model, load_value_model
from runtime.monitor import Monitor
from runtime.text import rounded
from sample import Rollout
from train import evaluation, rl, sft
from train.collect import Collector
from train.setup import process


@pytest.fixture(autouse=True)
def as_before():
    """A run owns its process: it sets threads, warnings and log lines. Here they are put back."""
    root, threads, show = logging.getLogger(), torch.get_num_threads(), warnings.showwarning
    handlers, level = list(root.handlers), transformers_logging.get_verbosity()
    with warnings.catch_warnings():
        yield
    logging.captureWarnings(False)
    root.handlers, warnings.showwarning = handlers, show
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    transformers_logging.set_verbosity(level)
    transformers_logging.enable_progress_bar()


def run_rl(shop, *arguments, **named):
    return rl.run(load_config(shop.arguments(RL, *arguments, **named)))


def weights(folder):
    return load_model(folder).state_dict()


def same_weights(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def steps(folder):
    """metrics.jsonl by step, without what a clock measures and without evaluation rows."""
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if not any(k.startswith("eval/") for k in row)]
    return without_clock(rows)


def test_two_rl_steps(tmp_path, model_folder, capsys):
    shop = Workshop(tmp_path, model_folder)
    summary = run_rl(shop)
    folder = shop.runs / "rl"
    out = capsys.readouterr().out.strip().splitlines()
    assert out[-1].startswith("final ") and json.loads(out[-1].removeprefix("final ")) == rounded(summary)
    assert {"accuracy_before", "accuracy_after", "steps", "seconds", "model"} <= set(summary) and summary["steps"] == 2

    rows = steps(folder)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["mismatch_kl"] < 1e-9 and row["mismatch_abs"] < 1e-5
        assert row["updates"] >= 1 and row["grad_norm"] > 0 and row["trained_tokens"] > 0
        assert all(value is not None and math.isfinite(value) for value in row.values())
    evaluations = [row for row in read_jsonl(folder / "metrics.jsonl") if any(k.startswith("eval/") for k in row)]
    assert [row["step"] for row in evaluations] == [0, 0, 2, 2]

    written = read_jsonl(folder / "rollouts.jsonl")
    assert [row["step"] for row in written] == [1] * 16 + [2] * 16
    for row in written:
        rollout = Rollout.from_dict(row)
        assert rollout.key[:2] == (row["step"], row["task"]) and rollout.weights_version == row["step"] - 1
        assert row["advantage"] is None or row["reward"] is not None
    for step, row in zip((1, 2), rows, strict=True):
        mine = [r for r in written if r["step"] == step]
        assert row["reward/mean"] == pytest.approx(np.mean([r["reward"] for r in mine]))
        assert row["completion_length"] == np.mean([r["num_response_tokens"] for r in mine])
        trained = sum(r["num_response_tokens"] for r in mine if r["advantage"] is not None)
        assert row["trained_tokens"] == trained

    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in (folder / "ckpt").iterdir()) == ["optimized", "step-000001", "step-000002"]
    assert not same_weights(shop.model, folder / "ckpt" / "step-000001")
    assert not same_weights(folder / "ckpt" / "step-000001", folder / "ckpt" / "step-000002")
    assert same_weights(folder / "ckpt" / "optimized", folder / "ckpt" / "step-000002")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / "ckpt" / "optimized" / name).read_bytes() == (shop.model / name).read_bytes()


@pytest.mark.slow
def test_rl_on_adapters_is_resumed_evaluated_and_says_its_memory(shop, capsys):
    arguments = ["lora.rank=4", "training.kl_to=reference", "experiment.total_step=2", "evaluation.eval_dataset=''"]
    rl.run(load_config(shop.arguments(RL, *arguments, "dry_run=true")))
    said = capsys.readouterr().out
    assert "always" in said and "frozen reference" not in said
    run_rl(shop, *arguments)
    saved = shop.runs / "rl" / "ckpt" / "optimized"
    assert (saved / "adapter_model.safetensors").is_file() and not (saved / "model.safetensors").exists()
    assert load_model(saved).adapters.r == 4
    assert evaluation.run(load_config(shop.arguments(EVAL, f"model.pretrained_model={saved}")))
    assert run_rl(shop, *arguments)["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("block", [8, 16])
def test_a_checkpoint_of_small_blocks_is_trained_at_larger_ones(shop, block):
    """By config alone: sampled and replayed alike at the new size, which what is saved names."""
    arguments = [f"rollout.block_size={block}", "rollout.max_new_tokens=20", "experiment.total_step=1"]
    run_rl(shop, *arguments, f"evaluation.block_size={block}", "training.normalization=constant")
    (row,) = steps(shop.runs / "rl")
    assert row["mismatch_abs"] < 1e-5 and row["updates"] >= 1
    assert load_model(shop.model).block_size == 4
    assert load_model(shop.runs / "rl" / "ckpt" / "optimized").block_size == block
    assert {line["block_size"] for line in read_jsonl(shop.runs / "rl" / "rollouts.jsonl")} == {block}


@pytest.mark.slow
def test_arguments_reach_the_resolved_config_and_the_run(shop):
    arguments = ["training.eps=0.35", "rollout.num_response_per_task=3", "experiment.total_step=1", "training.seed=7"]
    run_rl(shop, *arguments, "evaluation.eval_dataset=''")
    saved = yaml.safe_load((shop.runs / "rl" / "config.yaml").read_text())
    assert (saved["training"]["eps"], saved["rollout"]["num_response_per_task"]) == (0.35, 3)
    assert (saved["experiment"]["total_step"], saved["training"]["seed"]) == (1, 7)
    assert len(read_jsonl(shop.runs / "rl" / "rollouts.jsonl")) == 12


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_does_not(shop):
    arguments = ["experiment.total_step=1", "evaluation.eval_dataset=''"]
    for project, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_rl(shop, f"experiment.project={project}", f"training.seed={seed}", *arguments)
    a, b, c = (shop.runs / name for name in "abc")
    assert steps(a) == steps(b) and same_weights(a / "ckpt" / "optimized", b / "ckpt" / "optimized")
    texts = [[row["completion"] for row in read_jsonl(run / "rollouts.jsonl")] for run in (a, c)]
    assert texts[0] != texts[1] and not same_weights(a / "ckpt" / "optimized", c / "ckpt" / "optimized")


class Stop(Exception):
    pass


WITH_VALUE = ["model.value_base_model=${model.pretrained_model}", "optimizer.params.value_learning_rate=2e-3"]


@pytest.mark.slow
def test_two_rl_steps_with_a_value_model(shop, capsys):
    """At the first step a fresh value model says 0, so undiscounted it changes nothing; at the second it is heard."""
    run_rl(shop, *WITH_VALUE, "experiment.project=value")
    assert "value" in capsys.readouterr().out
    folder = shop.runs / "value"
    first, second = steps(folder)
    assert first["value/mean"] == 0.0 and second["value/mean"] != 0.0
    for row in (first, second):
        assert row["value/updates"] == row["updates"] >= 1 and row["value/grad_norm"] > 0
        assert row["value/learning_rate"] == 2e-3 and row["learning_rate"] == 1e-3
        assert row["mismatch_abs"] < 1e-5 and all(math.isfinite(value) for value in row.values())
    ckpt = folder / "ckpt"
    assert sorted(p.name for p in ckpt.iterdir()) == ["optimized", "optimized_value", "step-000001", "step-000002"]
    assert (ckpt / "optimized_value").resolve() == (ckpt / "step-000002" / "value").resolve()
    base, *saved = (load_value_model(p).state_dict() for p in (shop.model, *sorted(ckpt.glob("step-*/value"))))
    for before, after in itertools.pairwise([base, *saved]):
        assert not torch.equal(before["value_head.weight"], after["value_head.weight"])
    frozen = {name for name in base if torch.equal(base[name], saved[-1][name])}
    assert frozen == {"base.lm_head.weight"}
    for name in ("tokenizer.json", "config.json"):
        assert (ckpt / "optimized_value" / name).read_bytes() == (ckpt / "optimized" / name).read_bytes()

    run_rl(shop, "experiment.project=plain")
    plain = steps(shop.runs / "plain")
    for with_value, without, same in zip((first, second), plain, (True, False), strict=True):
        shared = {name: value for name, value in with_value.items() if not name.startswith("value/")}
        assert (shared == pytest.approx(without, rel=1e-5, abs=1e-9)) == same


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdar", pytest.param("dream", marks=pytest.mark.slow)])
def test_a_value_model_that_learns_now_and_then(tmp_path, family, monkeypatch):
    monkeypatch.setattr(Monitor, "curves", lambda monitor: None)
    shop = Workshop(tmp_path, text_checkpoint(tmp_path / "model", family))
    run_rl(
        shop,
        *WITH_VALUE,
        *("experiment.train_value_every=2", "experiment.total_step=2", "experiment.save_every=2"),
        *("training.post_num=1", "training.shrink=2", "evaluation.eval_dataset=null"),
    )
    first, second = steps(shop.runs / "rl")
    assert "value/updates" not in first and second["value/updates"] >= 1
    assert first["updates"] >= 1 and second["updates"] >= 1


REFILLED = ["rollout.refill_draws=2", "rollout.num_task_per_step=3", "training.min_accuracy=0.4"]


@pytest.mark.slow  # test_old_runs.py is the fast test of an exact resume
@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([], id="policy"),
        pytest.param(WITH_VALUE, id="value", marks=pytest.mark.long),
        pytest.param(["experiment.deterministic=false"], id="not-deterministic", marks=pytest.mark.long),
        pytest.param(REFILLED, id="refilled", marks=pytest.mark.long),
    ],
)
def test_resumed_equals_straight(shop, monkeypatch, extra):
    """Four steps in one go, and four of which the last died when the third had been logged but not saved."""
    arguments = ["experiment.total_step=4", "experiment.save_every=2", "experiment.deterministic=true", *extra]
    arguments += ["experiment.eval_every=4", "evaluation.top_k=0"]
    arguments += [
        "training.num_train_epochs=2",
        "lr_scheduler.params.min_lr_scale=0.1",
        "lr_scheduler.params.warmup_steps=1",
    ]
    run_rl(shop, *arguments, "experiment.project=straight")

    def dies_in_step_4(self, prompts, step):
        if step == 4:
            raise Stop
        return rollout(self, prompts, step)

    rollout = Collector.sample
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Collector, "sample", dies_in_step_4)
        run_rl(shop, *arguments, "experiment.project=resumed")
    resumed, straight = shop.runs / "resumed", shop.runs / "straight"
    assert [row["step"] for row in steps(resumed)] == [1, 2, 3]
    first_lines = (resumed / "metrics.jsonl").read_text().splitlines()[:3]

    sampled = []
    with monkeypatch.context() as patch:
        patch.setattr(
            Collector, "sample", lambda self, prompts, step: sampled.append(step) or rollout(self, prompts, step)
        )
        run_rl(shop, *arguments, "experiment.project=resumed")
    assert set(sampled) == {4} and (len(sampled) == 1 or extra == REFILLED), "the rollouts of step 3 were on disk"
    assert steps(resumed) == steps(straight) and [row["step"] for row in steps(resumed)] == [1, 2, 3, 4]
    assert (resumed / "metrics.jsonl").read_text().splitlines()[:3] == first_lines
    assert same_weights(resumed / "ckpt" / "optimized", straight / "ckpt" / "optimized")
    if extra == REFILLED:
        assert steps(straight)[2]["groups"] > 3 and steps(straight)[2]["groups_dropped/equal"]
    if extra == WITH_VALUE:
        values = [load_value_model(run / "ckpt" / "optimized_value").state_dict() for run in (resumed, straight)]
        assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
    rollouts = [read_jsonl(run / "rollouts.jsonl") for run in (resumed, straight)]
    assert rollouts[0] == rollouts[1]


@pytest.mark.slow
def test_a_finished_run_only_says_so_again(shop):
    arguments = ["experiment.total_step=1", "evaluation.top_k=0"]
    first = run_rl(shop, *arguments)
    lines = (shop.runs / "rl" / "metrics.jsonl").read_text()
    again = run_rl(shop, *arguments)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}
    assert (shop.runs / "rl" / "metrics.jsonl").read_text() == lines


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_anew(shop, monkeypatch):
    arguments = ["experiment.save_every=2", "experiment.project=anew", "evaluation.top_k=0"]

    def dies(self, step):
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(rl.Run, "save", dies)
        run_rl(shop, *arguments)
    run_rl(shop, *arguments)
    rows = read_jsonl(shop.runs / "anew" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 2]
    assert len(read_jsonl(shop.runs / "anew" / "rollouts.jsonl")) == 32


@pytest.mark.slow
def test_another_config_in_the_same_folder_is_refused(shop, capsys):
    arguments = ["experiment.total_step=1", "evaluation.eval_dataset=''"]
    run_rl(shop, *arguments)
    before = (shop.runs / "rl" / "metrics.jsonl").read_text()
    with pytest.raises(ValueError) as error:
        run_rl(shop, *arguments, "training.eps=0.3")
    assert "training.eps" in str(error.value) and "0.2 -> 0.3" in str(error.value)
    assert "experiment.overwrite=true" in str(error.value)
    assert (shop.runs / "rl" / "metrics.jsonl").read_text() == before
    run_rl(shop, *arguments, "training.eps=0.3", "experiment.overwrite=true")
    saved = yaml.safe_load((shop.runs / "rl" / "config.yaml").read_text())
    assert saved["training"]["eps"] == 0.3 and len(steps(shop.runs / "rl")) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:experiment.start_from_scratch .* has no effect")
def test_start_from_scratch_never_deletes(shop):
    arguments = ["experiment.total_step=1", "evaluation.eval_dataset=''", "experiment.start_from_scratch=true"]
    run_rl(shop, *arguments)
    with pytest.raises(ValueError, match="training.eps"):
        run_rl(shop, *arguments, "training.eps=0.3")
    assert len(steps(shop.runs / "rl")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["always_one", None])
def test_a_step_whose_groups_all_drop_is_logged_and_skipped(shop, capsys, reward):
    """A user's reward without differences, and the math reward, of which a random model earns nothing."""
    run_rl(shop, "evaluation.eval_dataset=''", reward=reward)
    out = capsys.readouterr().out
    assert out.count("is skipped") == 2 and out.count("4 of 4 groups dropped (equal)") == 2
    rows = steps(shop.runs / "rl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["groups_dropped/equal"] == 4 and "loss" not in row
        assert row["reward/mean"] == (1.0 if reward else 0.0)
    assert same_weights(shop.model, shop.runs / "rl" / "ckpt" / "optimized")
    assert len(read_jsonl(shop.runs / "rl" / "rollouts.jsonl")) == 32


@pytest.mark.parametrize("method", ["semi-ar", "trace"])
def test_sft_learns_its_examples(shop, method, capsys):
    summary = sft.run(load_config(shop.arguments(SFT, f"training.method={method}", "training.block_size=4")))
    folder = shop.runs / "sft"
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1].removeprefix("final ")) == rounded(summary)
    rows = steps(folder)
    assert [row["step"] for row in rows] == list(range(1, 17)) and summary["steps"] == 16
    assert np.mean([row["nll"] for row in rows[-4:]]) < 0.6 * np.mean([row["nll"] for row in rows[:4]])
    assert not same_weights(shop.model, folder / "ckpt" / "optimized")


@pytest.mark.slow
def test_sft_trains_every_token_of_every_example_each_epoch(shop):
    """Everything masked: 6 answers of 3 tokens and their end, in 2 copies; 4 examples an update, then the last 2."""
    sft.run(load_config(shop.arguments(SFT, "training.lower_p=1", "training.upper_p=1", "training.num_train_epochs=2")))
    assert [row["trained_tokens"] for row in steps(shop.runs / "sft")] == [32, 16, 32, 16]


def test_sft_resumed_equals_straight(shop, monkeypatch):
    arguments = ["training.num_train_epochs=4", "experiment.save_every=2", "lr_scheduler.params.min_lr_scale=0.1"]
    sft.run(load_config(shop.arguments(SFT, *arguments, "experiment.project=straight")))
    make_samples = sft.make_samples

    def dies_in_epoch_3(sample, model, training, method, epoch, window):
        if epoch == 3:
            raise Stop
        return make_samples(sample, model, training, method, epoch, window)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(sft, "make_samples", dies_in_epoch_3)
        sft.run(load_config(shop.arguments(SFT, *arguments, "experiment.project=resumed")))
    assert len(steps(shop.runs / "resumed")) == 6
    sft.run(load_config(shop.arguments(SFT, *arguments, "experiment.project=resumed")))
    resumed, straight = shop.runs / "resumed", shop.runs / "straight"
    assert steps(resumed) == steps(straight) and len(steps(resumed)) == 8
    assert same_weights(resumed / "ckpt" / "optimized", straight / "ckpt" / "optimized")


@pytest.mark.slow
def test_rl_makes_its_own_first_model(shop, capsys):
    """model.prepare_with: the SFT run goes first, in the same process and precision, and only when its
    model is absent."""
    sft_file = shop.folder / "first.yaml"
    shop.arguments(SFT)
    sft_text = (shop.folder / "sft.yaml").read_text().replace('"no"', "bf16")
    sft_file.write_text(
        f"{sft_text}model: {{pretrained_model: {shop.model}}}\ndataset: {{optimization_data: {shop.pairs}}}\n"
    )
    arguments = [
        f"model.prepare_with={sft_file}",
        f"model.pretrained_model={shop.runs / 'sft' / 'ckpt' / 'optimized'}",
        "experiment.total_step=1",
        "evaluation.eval_dataset=''",
        "training.seed=3",
    ]
    run_rl(shop, *arguments)
    prepared = yaml.safe_load((shop.runs / "sft" / "config.yaml").read_text())["training"]
    assert (prepared["seed"], prepared["mixed_precision"]) == (3, "no")
    assert len(steps(shop.runs / "sft")) == 16 and len(steps(shop.runs / "rl")) == 1
    assert "SFT sft" in capsys.readouterr().out
    run_rl(shop, *arguments, "experiment.project=again")
    assert "SFT sft" not in capsys.readouterr().out


def test_training_and_sampling_in_bf16(shop, monkeypatch):
    """One model samples and works in bf16; fp32 masters learn, and are saved."""
    monkeypatch.setattr(process, "_cpu_has_bf16", lambda: True)
    runs, save = [], rl.Run.save
    monkeypatch.setattr(rl.Run, "save", lambda self, step: (runs.append(self), save(self, step)))
    run_rl(shop, "training.mixed_precision=bf16", "evaluation.top_k=0")
    learner, saved = runs[-1].learner, weights(shop.runs / "rl" / "ckpt" / "optimized")
    assert learner.sampled is learner.model and {w.dtype for w in saved.values()} == {torch.float32}
    for name, weight in learner.model.named_parameters():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, saved[name].bfloat16()), name
        assert not torch.equal(weight.float(), saved[name]), name
    for row in steps(shop.runs / "rl"):
        assert 0.0 < row["mismatch_kl"] < 1e-3 and row["updates"] >= 1 and row["grad_norm"] > 0
    assert not same_weights(shop.model, shop.runs / "rl" / "ckpt" / "optimized")


@pytest.mark.slow
def test_eval_of_a_checkpoint(shop, capsys):
    run_rl(shop, "experiment.total_step=1", "evaluation.eval_dataset=''")
    arguments = [
        f"model={shop.runs / 'rl' / 'ckpt' / 'optimized'}",
        "rollout.strategy=[low_confidence_dynamic,low_confidence_static,sequential]",
        "rollout.top_k=[0,1,0]",
        "rollout.block_size=[4,4,2]",
    ]
    metrics = evaluation.run(load_config(shop.arguments(EVAL, *arguments, reward="by_answer")))
    out = capsys.readouterr().out.strip().splitlines()
    assert json.loads(out[-1].removeprefix("final ")) == rounded(metrics)
    assert set(metrics) == {"dynamic-b4-T1", "static-b4-greedy", "sequential-b2-T1"}
    folder = shop.runs / "eval"
    assert json.loads((folder / "results.json").read_text()) == metrics
    rows = read_jsonl(folder / "samples.jsonl")
    assert len(rows) == 3 * 3 * 2
    for name, values in metrics.items():
        mine = [row for row in rows if row["entry"] == name]
        by_task = [[row["reward"] >= 1 for row in mine if row["task"] == f"task-{t}"] for t in range(3)]
        assert values["accuracy"] == values["avg@2"] == pytest.approx(np.mean(by_task))
        assert values["pass@2"] == pytest.approx(np.mean([any(task) for task in by_task]))
        shares = [np.mean(task) for task in by_task]
        assert values["stderr"] == pytest.approx(np.std(shares, ddof=1) / 3**0.5)
        assert values["reward"] == pytest.approx(np.mean([row["reward"] for row in mine]))
        assert values["length"] == np.mean([row["tokens"] for row in mine])
        assert values["tokens_per_forward"] == pytest.approx(
            sum(row["tokens"] for row in mine) / sum(row["num_steps"] for row in mine)
        )
        assert values["tasks"] == 3
    for row in rows:
        assert len(row["token_ids"]) == len(row["step_map"]) == len(row["logprobs"]) == row["tokens"]
        assert row["prompt_ids"] and f"-b{row['block_size']}-" in row["entry"]
    greedy = [row["completion"] for row in rows if row["entry"] == "static-b4-greedy"]
    assert greedy[::2] == greedy[1::2]


@pytest.mark.slow
@pytest.mark.parametrize("family", thinned(["dream", "llada", "mmada"], 3))
def test_eval_of_full_attention(tmp_path, family, monkeypatch):
    monkeypatch.setattr(Monitor, "curves", lambda monitor: None)
    shop = Workshop(tmp_path, text_checkpoint(tmp_path / "model", family))
    arguments = [f"model_base={family}", "rollout.max_gen_length=12", "rollout.steps=9", "rollout.block_size=4"]
    arguments += ["rollout.strategy=[low_confidence_static,low_confidence_dynamic]", "rollout.use_cache=true"]
    metrics = evaluation.run(load_config(shop.arguments(EVAL, *arguments)))
    assert set(metrics) == {"static-b4-T1", "dynamic-b4-T1"}
    rows = read_jsonl(shop.runs / "eval" / "samples.jsonl")
    assert len(rows) == 2 * 3 * 2 and all(row["num_steps"] <= 9 for row in rows if row["entry"].startswith("static"))
    for values in metrics.values():
        assert values["tokens_per_forward"] > 0 and values["tasks"] == 3


@pytest.mark.slow
def test_eval_again_replaces_its_results(shop):
    config = shop.arguments(EVAL, reward="by_answer")
    first = evaluation.run(load_config(config))
    second = evaluation.run(load_config(config))

    assert first.keys() == second.keys() and without_clock(first.values()) == without_clock(second.values())
    assert len(read_jsonl(shop.runs / "eval" / "samples.jsonl")) == 6
    assert len(read_jsonl(shop.runs / "eval" / "metrics.jsonl")) == 1


@pytest.mark.slow
def test_the_three_scripts(shop):
    """From another folder, at once: each ends with its final line and status 0; a mistake is one line and status 2."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(script, *arguments):
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / script), *arguments],
            cwd=shop.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    started = {
        "rl": start("rl.py", *shop.arguments(RL, "experiment.total_step=1")),
        "sft": start("train/sft.py", *shop.arguments(SFT, "training.num_train_epochs=2")),
        "eval": start("eval.py", *shop.arguments(EVAL)),
        "typo": start("rl.py", *shop.arguments(RL, "training.epss=1")),
        "help": start("eval.py", "--help"),
    }
    ended = {name: (*process.communicate(), process.returncode) for name, process in started.items()}
    for name in ("rl", "sft", "eval"):
        out, err, code = ended[name]
        assert code == 0, err
        assert json.loads(out.strip().splitlines()[-1].removeprefix("final "))
        assert "Traceback" not in err
    out, err, code = ended["typo"]
    assert code == 2 and err.count("\n") == 1 and "Did you mean 'training.eps'?" in err
    assert ended["help"][2] == 0 and "rollout.temperature" in ended["help"][0]
