"""Fine-tuning with held-out examples, and runs that stop when they get no better."""

import json

import pytest
from end_to_end import RL, SFT, read_jsonl, without_clock, write_json

from configs import load_config
from data.tasks import Example
from train import rl, sft
from train.held_out import split_off


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
    typed = ["experiment.early_stopping=1", "evaluation.eval_dataset=''"]
    with pytest.raises(ValueError, match="experiment.early_stopping needs evaluations"):
        rl.run(load_config(shop.arguments(RL, *typed), command="rl"))
