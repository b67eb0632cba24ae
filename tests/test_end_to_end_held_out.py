"""Fine-tuning with held-out examples, and runs that stop when they get no better."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from end_to_end import RL, SFT, read_jsonl, text_checkpoint, without_clock, write_json

from configs import load_config
from configs.load import merge
from data.tasks import Example
from models import load_model
from runtime import run_config
from train import rl, sft
from train.algorithm.masking import METHODS
from train.examples import examples_of
from train.figures import metric_names
from train.held_out import HeldOut, split_off
from train.learner.tuning import Likelihood
from train.setup.models import spec_of
from train.setup.sources import settings_of


def weights_of(folder):
    return (folder / "ckpt" / "optimized" / "model.safetensors").read_bytes()


def run_sft(shop, project, *arguments):
    final = sft.run(load_config(shop.arguments(SFT, f"experiment.project={project}", *arguments), command="sft"))
    return shop.runs / project, final


@pytest.mark.slow
def test_a_held_out_loss_changes_no_weight_and_resumes(shop):
    held = write_json(shop.folder / "held.json", [{"prompt": "7=", "response": "\\boxed{7}"}] * 2)
    measured = [f"dataset.validation_dataset={held}", "experiment.eval_every=2"]
    plain, _ = run_sft(shop, "plain", "training.max_steps=4")
    whole, final = run_sft(shop, "whole", "training.max_steps=4", *measured)
    run_sft(shop, "parts", "training.max_steps=2", *measured)
    parts, _ = run_sft(shop, "parts", "training.max_steps=4", *measured)
    rows = read_jsonl(whole / "metrics.jsonl")
    assert without_clock(rows) == without_clock(read_jsonl(parts / "metrics.jsonl"))
    assert weights_of(plain) == weights_of(whole) == weights_of(parts)
    found = {row["step"]: row["validation/nll"] for row in rows if "validation/nll" in row}
    assert list(found) == [0, 2, 4] and final["validation_nll"] == found[4] < found[0]
    updates = [row for row in without_clock(rows) if "loss" in row]
    assert updates == [row for row in without_clock(read_jsonl(plain / "metrics.jsonl"))]


@pytest.mark.slow
def test_fine_tuning_stops_when_the_held_out_loss_falls_no_more_and_stays_so(shop, capsys):
    keys = ["dataset.validation_split=0.3", "experiment.eval_every=1", "experiment.early_stopping=2"]
    keys += ["experiment.early_stopping_gain=100", "training.max_steps=9"]
    folder, final = run_sft(shop, "early", *keys)
    assert final["steps"] == 2 and "falls no more: stopped after update 2" in capsys.readouterr().out
    assert (folder / "ckpt" / "step-000002").is_dir() and json.loads((folder / "final.json").read_text())["steps"] == 2
    _, again = run_sft(shop, "early", *keys)
    assert again["steps"] == 2 and len([row for row in read_jsonl(folder / "metrics.jsonl") if "loss" in row]) == 2
    _, longer = run_sft(shop, "early", *keys, "experiment.early_stopping=null", "training.max_steps=3")
    assert longer["steps"] == 3


@pytest.mark.slow
def test_rl_stops_when_evaluations_get_no_better(shop, capsys):
    keys = ["experiment.early_stopping=1", "experiment.eval_every=1", "evaluation.top_k=1", "experiment.total_step=5"]
    keys += ["experiment.early_stopping_gain=5", "experiment.save_every=5"]
    final = rl.run(load_config(shop.arguments(RL, *keys), command="rl"))
    logged = read_jsonl(shop.runs / "rl" / "metrics.jsonl")
    found = {key.rpartition("/")[2] for row in logged for key in row if key.startswith("eval/")}
    assert "accuracy" in found and {re.sub(r"\(.+\)$", "(SOURCE)", name) for name in found} <= {*metric_names(2, 1, "")}
    assert final["steps"] == 1 and final["reward_after"] is not None
    assert (shop.runs / "rl" / "ckpt" / "step-000001").is_dir() and "stopped after step 1" in capsys.readouterr().out


def test_a_split_holds_out_the_same_share_of_each_set_by_seed():
    examples = [Example(str(i), "r", None, of="a" if i < 20 else "b") for i in range(30)]
    kept, held = split_off(examples, 0.2, 1)
    assert [sum(example.of == of for example in held) for of in "ab"] == [4, 2]
    assert sorted(map(str, kept + held)) == sorted(map(str, examples)) and split_off(examples, 0.2, 1) == (kept, held)
    assert split_off(examples, 0.2, 2)[1] != held and split_off(examples, 0.0, 1) == (examples, [])
    with pytest.raises(ValueError, match="validation_split=0.9 holds out all 1 examples"):
        split_off(examples[:1], 0.9, 1)


def trace(task, **more):
    return Example("", "", None, trace={"task": task, "prompt_ids": [1], **more})


def test_a_split_never_holds_out_a_task_that_is_trained():
    """Several responses of a task, and rows that repeat a prompt, stay together."""
    responses = [trace(str(task), set=of) for task in range(10) for of in "ab" for _ in range(4)]
    rows = [Example(f"{i // 2}=", "r", None) for i in range(20)]
    for examples, name in (
        (responses, lambda example: (example.trace["task"], example.trace["set"])),
        (rows, lambda example: example.prompt),
    ):
        kept, held = split_off(examples, 0.2, 1)
        assert len(held) * 5 == len(examples) and len(kept) + len(held) == len(examples)
        assert not {*map(name, kept)} & {*map(name, held)}


def test_a_prompt_that_two_sets_share_is_held_out_of_both():
    examples = [Example(f"{i}=", "r", None, of=of) for i in range(10) for of in "ab"]
    kept, held = split_off(examples, 0.2, 1)
    assert not {example.prompt for example in kept} & {example.prompt for example in held}


def make_config(**sections):
    return merge({"training": {"mixed_precision": "no"}}, sections)


class PictureUpdater:
    """An updater whose model says -1 for every token, and counts the examples of each call."""

    def __init__(self):
        self.calls = []

    def outputs(self, samples, which):
        self.calls.append(len(samples))
        return [np.full(len(sample.targets), -1.0, np.float32) for sample in samples]


def likelihood(updater):
    return Likelihood(updater, merge().training, "block", 8, {})


def held_out_with_pictures(tmp_path, monkeypatch, are_usable):
    model = load_model(text_checkpoint(tmp_path))
    config = make_config(
        training={"method": "random_masking", "block_size": 4, "gradient_accumulation_steps": 1, "batch_size_lm": 2}
    )
    examples = [Example(f"{i}=", "12", None) for i in range(5)]
    held = HeldOut(examples, model, config, METHODS["random_masking"], {})
    held.samples = [replace(sample, images=("a.png",)) for sample in held.samples]
    plain = [replace(sample, images=()) for sample in held.samples]
    monkeypatch.setattr(
        "train.held_out.see", lambda samples, eyes: plain[: len(samples)] if are_usable else [], raising=True
    )
    return held


def test_held_out_pictures_are_encoded_an_update_at_a_time(tmp_path, monkeypatch):
    updater = PictureUpdater()
    figures = likelihood(updater).figures(held_out_with_pictures(tmp_path, monkeypatch, True).portions())
    assert updater.calls == [2, 2, 1] and figures["nll"] == pytest.approx(1.0)


def test_without_a_usable_picture_nothing_is_measured(tmp_path, monkeypatch):
    """A loss of 0.0 would be the best one for ever."""
    held, said = held_out_with_pictures(tmp_path, monkeypatch, False), []
    held.measure(likelihood(PictureUpdater()), 3, SimpleNamespace(event=said.append))
    assert not held.found and "its examples have no pictures to be used" in said[0]


def test_a_validation_set_of_traces_is_filtered_and_its_blocks_are_checked(shop):
    row = {"prompt_ids": [5], "canvas_ids": [6] * 4, "canvas_step_map": [1] * 4, "canvas_logprobs": [0.0] * 4}
    row |= {"num_response_tokens": 4, "num_steps": 1, "finish_reason": "stop", "task": "a"}
    traces, pairs = shop.folder / "traces.jsonl", f"dataset.validation_dataset={shop.pairs}"
    rows = [row | {"reward": 1.0, "block_size": 4}, row | {"reward": 0.0, "block_size": 4}]
    traces.write_text("".join(json.dumps(each) + "\n" for each in rows))
    keys = ["dataset.traces_per_task=1", "training.method=trace", f"dataset.optimization_data={traces}"]

    def read(*more):
        config = load_config(shop.arguments(SFT, *keys, *more), command="sft")
        return examples_of(config, spec_of(config), METHODS["trace"])

    assert [len(part) for part in read(f"dataset.validation_dataset={traces}")] == [1, 1]
    assert len(read(pairs)[1]) == 6
    other = shop.folder / "other.jsonl"
    other.write_text(json.dumps(row | {"reward": 1.0, "block_size": 8}) + "\n")
    with pytest.raises(ValueError, match="validation_dataset has responses that were sampled in blocks of 8"):
        read(f"dataset.validation_dataset={other}")


def test_another_validation_set_is_no_change_of_the_result(shop):
    """Neither its name nor what it holds changes a weight."""
    held, path = write_json(shop.folder / "held.json", [{"prompt": "7=", "response": "7"}]), shop.folder / "config.yaml"
    config = load_config(shop.arguments(SFT, f"dataset.validation_dataset={held}"), command="sft")
    run_config.write(path, settings_of(config, "sft"))
    write_json(held, [{"prompt": "8=", "response": "8"}])
    assert not run_config.changes(path, settings_of(config, "sft")).refused
    other = load_config(shop.arguments(SFT, f"dataset.validation_dataset={shop.pairs}"), command="sft")
    found = run_config.changes(path, settings_of(other, "sft"))
    assert not found.refused and "dataset.validation_dataset" in found.taken[0]


def test_the_longest_response_of_a_memory_plan_is_the_canvas_of_a_trace():
    given = Example("", "", None, trace={"num_response_tokens": 5, "canvas_ids": [1] * 64})
    assert sft._response_tokens(make_config(training={"max_gen_length": 16}).training, [given]) == 64


def test_a_warning_about_held_out_prompts_names_their_key(tmp_path, monkeypatch, caplog):
    model = load_model(text_checkpoint(tmp_path))
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ messages }}", raising=False)
    config = make_config(training={"method": "random_masking"}, dataset={"validation_dataset": "mine"})
    HeldOut([Example("1=", "12", None)], model, config, METHODS["random_masking"], {})
    assert "dataset.validation_dataset=mine: no prompt is a turn of a chat" in caplog.text


def test_keys_of_held_out_examples_that_cannot_be_are_named(shop):
    for typed, says in (
        (["dataset.validation_split=0.5", f"dataset.validation_dataset={shop.pairs}"], "both hold examples out"),
        (["dataset.validation_dataset=nope"], "dataset.validation_dataset: no data set 'nope'"),
        (["experiment.early_stopping=1"], "experiment.early_stopping needs a held-out loss"),
        (
            ["experiment.early_stopping=1", "dataset.validation_split=0.5", "experiment.early_stopping_metric=x"],
            "early_stopping_metric=x: choose from auto, loss, nll",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            sft.run(load_config(shop.arguments(SFT, *typed), command="sft"))
    typed = ["experiment.early_stopping=1", "experiment.early_stopping_metric=acuracy"]
    with pytest.raises(ValueError, match=r"early_stopping_metric=acuracy: choose from auto, accuracy, .*pass@2, avg@2"):
        rl.run(load_config(shop.arguments(RL, *typed), command="rl"))
    typed = ["experiment.early_stopping=1", "evaluation.eval_dataset=''"]
    with pytest.raises(ValueError, match="experiment.early_stopping needs evaluations"):
        rl.run(load_config(shop.arguments(RL, *typed), command="rl"))
