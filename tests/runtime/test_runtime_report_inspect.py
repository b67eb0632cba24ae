"""Evaluations as logs of Inspect AI."""

import json

import pytest
from run_folders import NASTY, lines

from sample.viewer.report import main


@pytest.fixture
def run(tmp_path):
    """A folder of eval.py: two tasks, two responses each, one without a reward."""
    rows = [
        {"entry": "a/greedy", "sample": i % 2, "task": f"t{i // 2}", "prompt": NASTY, "completion": f"c{i}",
         "answer": ["1", 2], "columns": {"level": 3}, "reward": None if i == 3 else float(i), "tokens": 5 + i,
         "num_steps": 4, "finish_reason": "length" if i else "stop"}
        for i in range(4)
    ]  # fmt: skip
    lines(tmp_path / "samples.jsonl", rows)
    figures = {"accuracy": 0.5, "stderr": 0.1}
    (tmp_path / "results.json").write_text(json.dumps({"all/greedy": figures, "a/greedy": figures}))
    (tmp_path / "config.yaml").write_text("model: {pretrained_model: /m}\ndataset: {eval_dataset: a}\n")
    assert main([str(tmp_path), "--inspect"]) == 0
    return tmp_path


def test_a_response_is_an_epoch_of_its_task_and_its_reward_the_score(run):
    (path,) = (run / "inspect").iterdir()
    log = json.loads(path.read_text())
    assert path.name == "a_greedy.json" and (log["version"], log["status"]) == (2, "success")
    assert (
        log["eval"]["model"] == "/m"
        and log["eval"]["dataset"]["samples"] == 2
        and log["eval"]["config"] == {"epochs": 2}
    )
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.5
    assert [(sample["id"], sample["epoch"]) for sample in log["samples"]] == [
        ("t0", 1),
        ("t0", 2),
        ("t1", 1),
        ("t1", 2),
    ]
    assert [sample["scores"].get("reward", {}).get("value") for sample in log["samples"]] == [0.0, 1.0, 2.0, None]
    first = log["samples"][0]
    assert (first["input"], first["target"], first["output"]["choices"][0]["stop_reason"]) == (
        NASTY,
        ["1", "2"],
        "stop",
    )


def test_inspect_ai_reads_them(run):
    log = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed")
    found = log.read_eval_log(str(run / "inspect" / "a_greedy.json"))
    assert found.results.scores[0].metrics["accuracy"].value == 0.5
    assert found.samples[1].scores["reward"].value == 1.0 and found.samples[0].output.completion == "c0"


def test_a_folder_of_training_is_one_line(tmp_path, capsys):
    lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    assert main([str(tmp_path), "--inspect"]) == 2
    assert "give the folder of an eval.py run" in capsys.readouterr().err
