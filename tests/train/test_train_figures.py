import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from configs import load_config
from sample import Events, Rollout
from train.evaluation import _report_curves
from train.figures import Evaluation, area_under_parallelism, figures
from train.setup.eval_sets import eval_sets


def evaluation(name, rewards, sources=None, n=1):
    prompts = [
        SimpleNamespace(task=SimpleNamespace(id=str(i), columns={"source": sources[i]} if sources else {}))
        for i in range(len(rewards) // n)
    ]
    rollouts = [SimpleNamespace(num_response_tokens=8, num_steps=4, finish_reason="stop", events=None)] * len(rewards)
    return Evaluation(name, prompts, rollouts, [""] * len(rewards), rewards, 1.0, 4, "source")


def test_sources_have_figures_of_their_own():
    metrics = evaluation("x", [1.0, 0.0, 1.0, 1.0, None], ["algebra", "algebra", "a/b", "a/b", "empty"]).metrics
    assert metrics["accuracy"] == 0.75
    assert (metrics["accuracy(algebra)"], metrics["accuracy(a_b)"]) == (0.5, 1.0)
    assert metrics["stderr(algebra)"] == pytest.approx(0.5) and metrics["tasks(a_b)"] == 2.0
    assert not any("empty" in key for key in metrics)


@pytest.mark.parametrize("sources", [["one"] * 3, [None] * 3, None])
def test_tasks_of_one_source_or_none_have_no_further_figures(sources):
    assert not any("(" in key for key in evaluation("x", [1.0, 0.0, 1.0], sources).metrics)


def test_too_many_sources_are_no_sources():
    assert not any("(" in key for key in evaluation("x", [1.0] * 25, [str(i) for i in range(25)]).metrics)


def test_the_mean_over_sets_is_weighted_and_comes_first():
    results = [evaluation("A/g", [1.0, 1.0, 0.0, 0.0]), evaluation("B/g", [1.0, 1.0])]
    found = figures(results, {"A": 3.0, "B": 1.0})
    assert list(found) == ["all/g", "A/g", "B/g"]
    whole = found["all/g"]
    assert whole["accuracy"] == pytest.approx((3 * 0.5 + 1.0) / 4)
    assert whole["stderr"] == pytest.approx(3 * found["A/g"]["stderr"] / 4)
    assert whole["tasks"] == 6.0 and "tokens_per_second" not in whole


def test_one_set_has_its_decodings_alone():
    assert list(figures([evaluation("g", [1.0])], {"": 1.0})) == ["g"]


def test_decodings_with_edits_say_how_often_they_overwrote():
    """Two tokens, three choices, one place with another token than before."""
    events = Events.of([(1, 0, 5, 5, -1.0), (1, 1, 6, 6, -1.0), (2, 0, 7, 7, -1.0)])
    edited = Rollout((0,), [3], [7, 6], [2, 1], [-1.0] * 2, 2, "stop", 2, events=events)
    plain, found = evaluation("g", [1.0]), replace(evaluation("e", [1.0]), rollouts=[edited])
    assert found.metrics["edits/events_per_token"] == 1.5 and found.metrics["edits/overwritten"] == 0.5
    assert found.metrics["edits/masked_again"] == 0.0 and not any("edits" in name for name in plain.metrics)


def test_scores_keep_what_each_response_earned():
    line = evaluation("g", [1.0, 0.0, None, 1.0], n=2).scores(3)
    assert line == {"step": 3, "entry": "g", "scores": {"0": [1.0, 0.0], "1": [None, 1.0]}}


def test_area_under_parallelism():
    """By hand: W(80) = 1, W(78) = exp(-3 * 2 / 80)."""
    w = 78 * math.exp(-3 * 2 / 80)
    assert area_under_parallelism([(3.0, 78.0), (1.0, 80.0)]) == pytest.approx(1 * 80 + 2 * (80 + w) / 2)
    assert area_under_parallelism([(1.0, 80.0), (3.0, 78.0), (9.0, 74.0)]) == pytest.approx(80 + (80 + w))
    assert area_under_parallelism([(2.0, 50.0)]) == 100.0
    assert area_under_parallelism([(2.0, 0.0), (3.0, 0.0)]) == 0.0


def test_lists_of_thresholds_and_temperatures_are_checked_and_kept():
    config = load_config(["config=configs/tiny_eval.yaml", "rollout.threshold=[0.5,1]", "rollout.temperature=[0,0.5]"])
    assert config.rollout.parallel_lists().items() >= {"threshold": [0.5, 1], "temperature": [0, 0.5]}.items()
    with pytest.raises(ValueError, match="rollout.threshold is 1.5; it must be between 0 and 1"):
        load_config(["config=configs/tiny_eval.yaml", "rollout.threshold=[0.5,1.5]"])
    with pytest.raises(ValueError, match="rollout.temperature is 'hot'; it must be a finite number"):
        load_config(["config=configs/tiny_eval.yaml", "rollout.temperature=hot"])


def sets_of(typed):
    return eval_sets(load_config(["config=configs/tiny_eval.yaml", f"dataset.eval_dataset={typed}"]), "eval")


def test_sets_are_named_by_their_files_and_take_the_config_s_type():
    first, second, third = sets_of("[MATH500,{name: /a/GSM8K.json,data_type: math,weight: 2},/b/GSM8K.jsonl]")
    assert [each.label for each in (first, second, third)] == ["MATH500", "GSM8K-1", "GSM8K-2"]
    assert (first.source.data_type, second.source.data_type) == ("general", "math")
    assert (first.weight, second.weight) == (1.0, 2.0)
    (alone,) = sets_of("MATH500")
    assert alone.label == ""


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("[{name: a,kind: math}]", "dataset.eval_dataset has an entry with 'kind'; it may have name, data_type"),
        ("[{data_type: math}]", "dataset.eval_dataset has an entry without name"),
        ("[{name: a,data_type: maths}]", "dataset.eval_dataset: data_type 'maths' of a; choose from math, code"),
        ("[{name: a,weight: -1}]", "dataset.eval_dataset: weight -1 of a; it must be a number above 0"),
        ("[5]", "dataset.eval_dataset is 5; it must be a name"),
    ],
)
def test_sets_that_cannot_be_are_named_by_their_key(typed, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        sets_of(typed)


def lines_of_curves(tmp_path, asked, **rates):
    """What is said of sets, given the tokens per forward of their decodings."""
    lines, folder = [], SimpleNamespace(path=tmp_path)
    monitor = SimpleNamespace(event=lines.append, warning=lines.append)
    metrics = {
        f"{label}/t{i}": {"tokens_per_forward": rate, "accuracy": 0.5, "stderr": 0.1}
        for label, found in rates.items()
        for i, rate in enumerate(found)
    }
    _report_curves(folder, monitor, metrics, asked=asked)
    return lines


def test_a_curve_that_was_asked_for_and_is_none_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("train.evaluation.curves.draw_tradeoff", lambda *given: None)
    assert lines_of_curves(tmp_path, False, a=[1.5, 1.5]) == []
    assert lines_of_curves(tmp_path, True, a=[1.5, 1.5]) == [
        "no curve of a: all 2 decodings have 1.5 tokens per forward"
    ]
    assert lines_of_curves(tmp_path, True) == ["no curve: no response has a reward"]
    assert not [*tmp_path.iterdir()]
    drawn = lines_of_curves(tmp_path, True, a=[1.5, 1.5], b=[1.0, 2.0])
    assert drawn[0].startswith("no curve of a") and "AUP, percent): b " in drawn[1] and len(drawn) == 2
    assert list(json.loads((tmp_path / "curve.json").read_text())) == ["b"]
