"""The figures of an evaluation, from answers whose rewards are known."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from train.evaluation import Evaluation, table


def evaluation(rewards, answers_a_task, tokens=6, steps=3):
    rollout = SimpleNamespace(num_response_tokens=tokens, num_steps=steps, finish_reason="stop", events=None)
    tasks = [SimpleNamespace() for _ in range(len(rewards) // answers_a_task)]
    return Evaluation("greedy", tasks, [rollout] * len(rewards), [""] * len(rewards), rewards, 2.0, 4).metrics


def test_averages_over_tasks_and_their_standard_error():
    """Shares of 1, 1/2 and 0: mean 1/2, two of three tasks pass, sample deviation over the root of three tasks."""
    found = evaluation([1.0, 1.0, 0.0, 1.0, 0.0, 0.5], 2)
    assert found["accuracy"] == found["avg@2"] == pytest.approx(0.5)
    assert found["stderr"] == pytest.approx(np.std([1, 0.5, 0], ddof=1) / 3**0.5)
    assert found["pass@2"] == pytest.approx(2 / 3) and found["reward"] == pytest.approx(3.5 / 6)
    assert found["tokens_per_forward"] == 2.0 and found["tokens_per_second"] == 18.0 and found["tasks"] == 3


def test_what_is_left_out_counts_in_no_average():
    found = evaluation([1.0, None, None, None, 0.0, 0.0], 2)
    assert found["accuracy"] == pytest.approx(0.5) and found["left_out"] == 3


def test_rewards_between_0_and_1_are_counted():
    assert "partial" not in evaluation([1.0, None, 0.0, 1.0], 2)
    assert evaluation([1.0, 0.25, 3.0, 0.0], 2)["partial"] == 0.5


def test_one_task_has_no_standard_error():
    assert evaluation([1.0, 0.0], 2)["stderr"] == 0.0


def test_an_evaluation_without_any_reward_has_no_accuracy():
    none, some = evaluation([None, None], 2), evaluation([1.0, None], 2)
    assert set(some) - set(none) == {"accuracy", "stderr", "pass@1", "avg@2", "reward"}
    assert none["left_out"] == 2 and none["length"] == 6.0
    assert [line.split() for line in table({"a": none, "b": some}).splitlines()][1] == ["accuracy", "-", "1"]


@pytest.mark.parametrize(("n", "wanted"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_pass_at_k_is_the_share_of_sets_of_k_answers_with_a_right_one(n, wanted):
    """Over all sets of k of a task's graded answers; a task with fewer than k of them does not count."""
    drawn = np.random.default_rng(n).integers(0, 8, size=(12, n))
    tasks = [[None if x == 0 else float(x > 5) for x in task] for task in drawn.tolist()]
    tasks[0] = [1.0] * n
    found = evaluation([reward for task in tasks for reward in task], n)
    assert [name for name in found if name.startswith("pass@")] == [f"pass@{k}" for k in wanted]
    for k in wanted:
        graded = [[r for r in task if r is not None] for task in tasks]
        shares = [np.mean([any(chosen) for chosen in combinations(g, k)]) for g in graded if len(g) >= k]
        assert found[f"pass@{k}"] == pytest.approx(np.mean(shares))
    assert found["pass@1"] == pytest.approx(found["accuracy"]) and found[f"avg@{n}"] == found["accuracy"]
    assert all(found[f"pass@{k}"] <= 1 for k in wanted)


def test_pass_at_k_of_a_thousand_answers_is_finite():
    assert evaluation([1.0] + [0.0] * 999, 1000)["pass@512"] == pytest.approx(0.512)


def test_the_table_stays_aligned_with_every_k():
    lines = table({"a": evaluation([1.0] * 64, 64), "b": evaluation([0.0] * 64, 64)}).splitlines()
    names = [line.split()[0] for line in lines[1:]]
    assert [name for name in names if "@" in name] == [*(f"pass@{2**i}" for i in range(7)), "avg@64"]
    assert len({len(line) for line in lines}) == 1
