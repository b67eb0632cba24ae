"""Evaluations of a run on disk: evaluations.json and metrics.jsonl hold the same numbers, so that one mends the
other."""

import json
import warnings
from types import SimpleNamespace

import pytest

from runtime.files import append_jsonl
from runtime.run_folder import RunFolder
from train.evaluate import Evaluations

FOUND = {step: {"static": {"accuracy": step / 10, "pass@1": 0.5}, "dynamic": {"accuracy": 0.5}} for step in (0, 2, 4)}
SETUP = SimpleNamespace(names=["static", "dynamic"])


@pytest.fixture
def folder(tmp_path):
    """Evaluations after steps 0, 2 and 4, and the lines of the steps between them."""
    run = RunFolder(tmp_path)
    for step in range(5):
        if step:
            append_jsonl(run.metrics, [{"step": step, "loss": 1.0}])
        for name, metrics in FOUND.get(step, {}).items():
            append_jsonl(
                run.metrics, [{"step": step} | {f"eval/{name}/{key}": value for key, value in metrics.items()}]
            )
    run.evaluations.write_text(json.dumps(FOUND, indent=1) + "\n")
    return run


def opened(folder, last_step, keep_best=False):
    experiment = SimpleNamespace(keep_best=keep_best, eval_every=2, total_step=6, eval_first=True)
    return Evaluations(SimpleNamespace(experiment=experiment), folder, SETUP, None, None, last_step)


def lines(folder):
    return [(row["step"], len(row) - 1) for row in map(json.loads, folder.metrics.read_text().splitlines())]


def on_disk(folder):
    return {int(step): entries for step, entries in json.loads(folder.evaluations.read_text()).items()}


def test_what_came_after_the_checkpoint_is_dropped(folder, caplog):
    found = opened(folder, 3)
    assert (
        found.found
        == {0: FOUND[0], 2: FOUND[2]}
        == {int(k): v for k, v in json.loads(folder.evaluations.read_text()).items()}
    )
    assert [step for step, _ in lines(folder)] == [0, 0, 1, 2, 2, 2, 3] and not caplog.text
    assert opened(folder, -1).found == {} and lines(folder) == []


def test_an_evaluation_that_was_broken_off_is_due_again(folder, caplog):
    """Its lines are there, all or some, and evaluations.json does not have it: a kill."""
    folder.evaluations.write_text(json.dumps({step: FOUND[step] for step in (0, 2)}))
    found = opened(folder, 4)
    assert found.due(4) and not found.due(2) and not caplog.text
    assert [step for step, _ in lines(folder)] == [0, 0, 1, 2, 2, 2, 3, 4]


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"a": 1}', '{"0": 1}', '{"0": {"static": 1}}', "[" * 100_000, "\0" * 90]
)
def test_a_damaged_file_of_evaluations_is_named_and_made_again(folder, content, caplog):
    folder.evaluations.write_text(content)
    found = opened(folder, 4)
    assert found.found == FOUND and not found.due(4)
    assert f"{folder.evaluations} is damaged" in caplog.text
    assert on_disk(folder) == FOUND
    assert len(lines(folder)) == 10


def test_a_number_that_was_changed_is_taken_from_the_log(folder, caplog):
    folder.evaluations.write_text(folder.evaluations.read_text().replace('"accuracy": 0.2', '"accuracy": 0.9'))
    assert opened(folder, 4, keep_best=True).scores == {0: 0.0, 2: 0.2, 4: 0.4}
    assert f"{folder.evaluations} lacks or changes step 2" in caplog.text


@pytest.mark.parametrize("name", ["evaluations", "metrics"])
def test_the_last_step_is_evaluated_again_where_the_two_differ(folder, name, caplog):
    path = getattr(folder, name)
    path.write_text(path.read_text().replace('accuracy": 0.4', 'accuracy": 0.9'))
    assert opened(folder, 4).due(4)
    assert "differ in step 4, which is evaluated again" in caplog.text
    assert [step for step, _ in lines(folder)] == [0, 0, 1, 2, 2, 2, 3, 4]


def test_an_evaluation_that_the_log_lost_is_named(folder, caplog):
    kept = [line for line in folder.metrics.read_text().splitlines() if '"step": 2' not in line]
    folder.metrics.write_text("\n".join(kept) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(folder, 4).found == FOUND
    assert f"{folder.metrics} lacks the evaluation of step 2" in caplog.text


def test_the_best_is_by_accuracy_or_by_mean_reward_where_rewards_are_no_verdicts(folder):
    found = opened(folder, 4, keep_best=True)
    found.found = {0: {"a": {"accuracy": 0.0, "reward": 0.3}}, 2: {"a": {"accuracy": 0.5, "reward": 0.2}}, 4: {"a": {}}}
    assert found.scores == {0: 0.0, 2: 0.5}
    found.found[4] = {"a": {"accuracy": 0.0, "reward": 0.9, "partial": 1.0}, "b": {"accuracy": 1.0}}
    assert found.scores == {0: 0.3, 2: 0.2, 4: 0.9}
