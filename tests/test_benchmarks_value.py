"""benchmarks/value.py: what it takes for a state, an error, an explained share."""

import json

import numpy as np
import pytest
from helpers import tiny_model

from benchmarks.value import explained, groups_of, hidden_of, readers, ridge, states_of, trained_values

RIGHT = [5, 6, 7, 2]


def row(step, task, index, canvas, steps, reward):
    return {
        "step": step,
        "task": task,
        "key": [step, task, index],
        "reward": reward,
        "block_size": 4,
        "prompt_ids": [9, 8, 7, 6],
        "canvas_ids": canvas,
        "canvas_step_map": steps,
        "canvas_logprobs": [-0.5, -0.25, -0.125, -1.0],
        "num_response_tokens": 4,
        "finish_reason": "stop",
        "num_steps": max(steps),
        "weights_version": 0,
    }


@pytest.fixture
def run(tmp_path):
    wrong = [5, 9, 7, 2]
    rows = [row(1, "a", 0, RIGHT, [1, 2, 3, 3], 1.0), row(1, "a", 1, wrong, [2, 1, 2, 3], 0.0)]
    rows += [row(1, "b", i, RIGHT, [1, 1, 1, 1], 1.0) for i in range(2)]
    rows += [row(2, "a", 0, wrong, [1, 1, 1, 1], 0.0), row(2, "a", 1, RIGHT, [4, 3, 2, 1], 1.0)]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_groups_are_mixed_and_of_the_steps_asked_for(run):
    found = [[(r["step"], r["task"]) for r in group] for group in groups_of(run / "rollouts.jsonl", (1, 2), limit=100)]
    assert found == [[(1, "a")] * 2, [(2, "a")] * 2]
    assert len(groups_of(run / "rollouts.jsonl", (2, 2), limit=100)) == 1
    assert len(groups_of(run / "rollouts.jsonl", (1, 2), limit=2)) == 1


def test_a_state_knows_what_was_written_before_its_step(run):
    model = tiny_model("sdar")
    states = states_of(groups_of(run / "rollouts.jsonl", (1, 1), limit=100), model)
    order = np.lexsort((states.step, states.sample))
    assert states.step[order].tolist() == [1, 2, 3, 3, 1, 2, 2, 3]
    assert states.error[order].tolist() == [False] * 5 + [True] * 3
    assert states.returns["centered"][order].tolist() == [0.5] * 4 + [-0.5] * 4
    assert states.returns["tokens"][order] == pytest.approx([3, 2, 1, 1, 2, 2, 2, 1])
    assert states.written[order][:3, 0] == pytest.approx([0, -0.5, -0.75])
    assert states.written[order][5] == pytest.approx([-0.25, -0.25, 1])
    seen = dict(readers(states, hidden_of(states, model)))
    assert list(seen) == ["place", "own doubt", "token", "block", "wide", "error"]
    together = np.flatnonzero((states.sample == 0) & (states.step == 3))
    assert np.ptp(seen["block"][together], 0).max() < 1e-12 < np.ptp(seen["token"][together], 0).max()


def test_what_is_plainly_there_is_explained_and_what_is_not_is_not():
    rng = np.random.default_rng(0)
    seen, noise = rng.standard_normal((600, 5)), rng.standard_normal(600)
    fitted = np.arange(600) < 300
    told = seen @ [1.0, -2.0, 0.0, 0.5, 0.0]
    assert explained(ridge(seen, told, fitted), told, ~fitted) > 0.999
    assert abs(explained(ridge(seen, noise, fitted), noise, ~fitted)) < 0.05


@pytest.mark.slow
def test_a_value_model_learns_what_it_is_fitted_to(run, tmp_path):
    model = tiny_model("sdar")
    model.save(tmp_path / "model")
    states = states_of(groups_of(run / "rollouts.jsonl", (1, 2), limit=100), model)
    everything = np.ones(len(states.step), dtype=bool)
    values = trained_values(states, str(tmp_path / "model"), everything, passes=60, rate=1e-2)
    assert explained(values, states.returns["centered"], everything) > 0.5
