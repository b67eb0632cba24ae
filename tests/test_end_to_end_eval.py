"""eval.py on several sets and of two models; and evaluations on several sets during RL."""

import json
import shutil

import pytest
from end_to_end import EVAL, RL, read_jsonl, write_tasks

from configs import load_config
from train import evaluation, rl


@pytest.mark.slow
def test_sets_curves_and_a_second_model_of_one_evaluation(shop, capsys, monkeypatch):
    """Of one model twice: the draws are the same, so that no response differs. The first model's figures are written
    before the second is asked."""
    folder, written, evaluate = shop.runs / "eval", [], evaluation.evaluate

    def watched(*given):
        path = folder / "results.json"
        written.append(list(json.loads(path.read_text())) if path.is_file() else None)
        return evaluate(*given)

    monkeypatch.setattr(evaluation, "evaluate", watched)
    other = write_tasks(shop.folder / "other.json", 2)
    own = f"{shop.reward}:always_one"
    sets = f"dataset.eval_dataset=[{shop.test},{{name: {other},weight: 3,reward: '{own}'}}]"
    typed = ["rollout.threshold=[0.05,1.0]", "rollout.strategy=low_confidence_dynamic", sets]
    typed.append(f"model.pretrained_model={shop.model},{shop.model}")
    config = load_config(shop.arguments(EVAL, *typed), command="eval")
    found = evaluation.run(config)
    decodings = ["dynamic-b4-T1-t0.05", "dynamic-b4-T1-t1"]
    labels = ["all/", "test/", "other/"]
    wanted = [f"{before}{label}{name}" for before in ("", "compared/") for label in labels for name in decodings]
    assert list(found) == wanted
    assert found["other/dynamic-b4-T1-t1"]["accuracy"] == 1.0
    whole, first = found["all/dynamic-b4-T1-t1"], found["test/dynamic-b4-T1-t1"]
    assert whole["accuracy"] == pytest.approx((first["accuracy"] + 3) / 4) and whole["tasks"] == 5.0
    assert written == [None, wanted[:6]]
    areas = json.loads((folder / "curve.json").read_text())
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG" and areas["other"]["aup"] > 100.0
    pairs = json.loads((folder / "comparison.json").read_text())
    assert set(pairs) == {f"{label}{name}" for label in labels[1:] for name in decodings}
    assert all(pair["difference"] == 0.0 and pair["p"] == 1.0 for pair in pairs.values())
    assert len(read_jsonl(folder / "scores.jsonl")) == 8
    rows = read_jsonl(folder / "samples.jsonl")
    assert sum(row["entry"].startswith("compared/") for row in rows) * 2 == len(rows)
    evals = [set(row) for row in read_jsonl(folder / "metrics.jsonl")]
    assert sum("eval/test/dynamic-b4-T1-t1/accuracy" in names for names in evals) == 1
    shown = capsys.readouterr().out
    assert "AUP, percent" in shown and "gained 0, lost 0, p 1 (McNemar)" in shown
    assert (folder / "report.html").is_file()


@pytest.mark.slow
def test_an_evaluation_of_another_model_gets_a_folder_of_its_own(shop, caplog):
    """Friction 17."""
    for limit in (1, 2, 1):
        evaluation.run(load_config(shop.arguments(EVAL, f"dataset.max_tasks={limit}"), command="eval"))
    assert sorted(path.name for path in shop.runs.iterdir()) == ["eval", "eval-2"]
    assert f"{shop.runs / 'eval'} holds another evaluation: this one goes to {shop.runs / 'eval-2'}" in caplog.text
    results = json.loads((shop.runs / "eval" / "results.json").read_text())
    assert next(iter(results.values()))["tasks"] == 1.0
    caplog.clear()
    evaluation.run(load_config(shop.arguments(EVAL, "dataset.max_tasks=3", "dry_run=true"), command="eval"))
    assert "holds another evaluation" not in caplog.text


@pytest.mark.slow
def test_evaluations_in_rl_take_several_sets_and_resume(shop, capsys):
    other = write_tasks(shop.folder / "other.json", 2)
    typed = [f"evaluation.eval_dataset=[{shop.test},{{name: {other},data_type: math}}]", "evaluation.top_k=1"]
    final = rl.run(load_config(shop.arguments(RL, *typed), command="rl"))
    found = json.loads((shop.runs / "rl" / "evaluations.json").read_text())
    assert list(found["2"]) == [f"{label}/dynamic-b4-greedy" for label in ("all", "test", "other")]
    assert final["accuracy_after"] == found["2"]["all/dynamic-b4-greedy"]["accuracy"]
    again = rl.run(load_config(shop.arguments(RL, *typed, "experiment.total_step=3"), command="rl"))
    assert again["accuracy_before"] == final["accuracy_before"]


def test_the_memory_of_both_models_is_planned(shop, model_folder, monkeypatch, tmp_path):
    other = shutil.copytree(model_folder, tmp_path / "other")
    planned = []
    monkeypatch.setattr(evaluation, "check_memory", lambda config, models: planned.append(models.policy.folder))
    typed = [f"model.pretrained_model={shop.model},{other}", "dry_run=true"]
    evaluation.run(load_config(shop.arguments(EVAL, *typed), command="eval"))
    assert planned == [shop.model, other]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["model.pretrained_model=a,b,c"], "eval.py compares two checkpoints, model=A,B"),
        (["rollout.threshold=[0.5,0.9]", "rollout.top_k=[1,1,1]"], "lists go together and must be of one length"),
    ],
)
def test_what_cannot_be_compared_is_one_line(typed, message, shop):
    with pytest.raises(ValueError, match=message):
        evaluation.run(load_config(shop.arguments(EVAL, *typed), command="eval"))
