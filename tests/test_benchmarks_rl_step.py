"""benchmarks/rl_step.py: what it makes of a run's metrics, and a run of its own."""

import pytest

from benchmarks.rl_step import phases, run


def test_phases_are_means_over_steps_and_saves_are_left_out():
    rows = [
        {"step": 2, "time/rollout_seconds": 3.0, "time/update_seconds": 1.0, "time/step_seconds": 4.5},
        {"step": 3, "time/rollout_seconds": 1.0, "time/save_seconds": 9.0, "time/step_seconds": 10.5, "loss": 1.0},
    ]
    assert phases(rows) == {"rollout": 2.0, "update": 0.5, "rest": 0.5}


@pytest.mark.long
@pytest.mark.slow
def test_a_tiny_run_gives_every_step(tmp_path):
    rows = run(tmp_path, [], steps=2)
    assert [row["step"] for row in rows] == [1, 2]
    assert {"rollout", "reward", "replay", "update", "sync"} <= set(phases(rows[1:]))


@pytest.mark.slow
def test_a_run_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="no_such.yaml"):
        run(tmp_path, ["config=no_such.yaml"], steps=2)
