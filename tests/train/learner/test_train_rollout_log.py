"""GradedRollouts steps on disk: what a resumed run may take, and what it must sample again."""

import json
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from helpers import tiny_model

from runtime.run_folder import RunFolder
from sample import Rollout
from train.algorithm.advantages import Credit
from train.distributed.sharding import weights_digest
from train.learner.rollout_log import GradedRollouts, RolloutLog

DESCRIBED = [
    {"task": task, "prompt": "p", "completion": text, "answer": "1", "columns": {"source": "x"}}
    for task, text in zip("aabb", "wxyz", strict=True)
]
PROMPTS = [[5, 6], [5, 6], [7], [7]]


def keys_of(step):
    return [(step, task, j) for task in ("a", "b") for j in range(2)]


def graded(step, token_rewards=None, kind="advantage"):
    rollouts = [
        Rollout(key, prompt, [9, 2, 1], [1, 2, 0], [-0.1 / 3, float("-inf"), 0.0], 2, "stop", 2, step - 1)
        for key, prompt in zip(keys_of(step), PROMPTS, strict=True)
    ]
    credit = Credit([0.1, -0.1, None, None], Counter({"equal": 1}), kind, token_rewards, {"judge/seconds": 0.5})
    return GradedRollouts(rollouts, [1.0, 1 / 3, None, 0.0], credit, {"reward/none_count": 1.0}, 0.25)


@pytest.fixture
def folder(tmp_path):
    """Steps 1 to 4, each sampled under weights of its own."""
    folder = RunFolder(tmp_path)
    steps = RolloutLog(folder, 0)
    for step in range(1, 5):
        assert steps.take(step, f"w{step}", keys_of(step), PROMPTS) is None
        put(steps, step)
    return folder


def put(steps, step):
    steps.put(step, f"w{step}", graded(step), DESCRIBED, 4)


def take(steps, step, weights=None, keys=None, prompts=PROMPTS):
    return steps.take(step, weights or f"w{step}", keys or keys_of(step), prompts)


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_resumed_run_takes_every_step_as_it_was(folder):
    steps = RolloutLog(folder, 2)
    assert take(steps, 3) == graded(3) and take(steps, 4) == graded(4)
    assert take(steps, 5) is None
    put(steps, 5)
    assert steps_in(folder.rollouts) == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4
    assert steps_in(folder.graded) == [1, 2, 3, 4, 5]


def test_token_rewards_come_back(tmp_path):
    steps, given = RolloutLog(RunFolder(tmp_path), 0), graded(1, [[0.5, 1.0], None, None, None])
    take(steps, 1)
    steps.put(1, "w1", given, DESCRIBED, 4)
    assert take(RolloutLog(RunFolder(tmp_path), 0), 1) == given


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "others"},
        {"keys": keys_of(3)[::-1]},
        {"prompts": [[5, 6], [5, 6], [8], [8]]},
    ],
    ids=["weights", "keys", "prompts"],
)
def test_what_would_be_sampled_otherwise_is_dropped_with_all_after_it(folder, other):
    steps = RolloutLog(folder, 1)
    assert take(steps, 2) == graded(2)
    assert take(steps, 3, **other) is None
    assert steps_in(folder.rollouts) == [1] * 4 + [2] * 4 and steps_in(folder.graded) == [1, 2]
    assert take(steps, 4) is None, "what came of other updates is gone, whatever its weights"


def cut(path, count):
    path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize("how", ["torn rollout", "torn line", "line alone", "rollouts alone", "row lost"])
def test_a_step_that_is_not_whole_is_sampled_again(folder, how):
    if how == "torn rollout":
        cut(folder.rollouts, 20)
    elif how == "torn line":
        cut(folder.graded, 20)
    elif how == "line alone":
        lines = folder.rollouts.read_text().splitlines(keepends=True)
        folder.rollouts.write_text("".join(lines[:-4]))
    elif how == "rollouts alone":
        lines = folder.graded.read_text().splitlines(keepends=True)
        folder.graded.write_text("".join(lines[:-1]))
    else:
        lines = folder.rollouts.read_text().splitlines(keepends=True)
        folder.rollouts.write_text("".join(lines[:-3] + lines[-2:]))
    with pytest.warns(UserWarning, match="no whole JSON") if how.startswith("torn") else nullcontext():
        steps = RolloutLog(folder, 2)
        found = take(steps, 3), take(steps, 4)
    assert found == (graded(3), None)
    put(steps, 4)
    assert steps_in(folder.rollouts) == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    assert steps_in(folder.graded) == [1, 2, 3, 4]


def test_a_step_whose_reward_call_failed_is_graded_again(folder):
    """Its rollouts stay in the log; steps that came after it came of weights that it might have moved."""
    steps = RolloutLog(folder, 2)
    assert take(steps, 3) and take(steps, 4)
    nothing = replace(graded(5), rewards=[None] * 4, credit=Credit([None] * 4, Counter({"small": 2})))
    assert take(steps, 5) is None
    steps.put(5, "w5", nothing, DESCRIBED, 4)
    put(steps, 6)
    assert steps_in(folder.rollouts)[-8:] == [5] * 4 + [6] * 4
    again = RolloutLog(folder, 3)
    assert take(again, 4) == graded(4) and take(again, 5) is None and take(again, 6) is None
    assert steps_in(folder.rollouts)[-4:] == [4] * 4 and steps_in(folder.graded) == [1, 2, 3, 4]


def test_rollouts_of_a_version_without_graded_steps_are_sampled_again(folder):
    folder.graded.unlink()
    assert take(RolloutLog(folder, 3), 4) is None
    assert steps_in(folder.rollouts) == [1] * 4 + [2] * 4 + [3] * 4


def test_one_bit_changes_the_digest():
    model = tiny_model("sdar")
    before = weights_digest(model)
    weight = next(model.parameters())
    with torch.no_grad():
        bits = weight.view(torch.int32)
        bits[0, 0] ^= 1
    assert weights_digest(model) != before
    with torch.no_grad():
        bits[0, 0] ^= 1
    assert weights_digest(model) == before == weights_digest(tiny_model("sdar"))


def test_rollouts_keep_their_bits():
    rollout = graded(1).rollouts[0]
    odd = replace(rollout, canvas_logprobs=[float(torch.tensor(-1 / 3)), -1e-45, 0.0])
    assert Rollout.from_dict(json.loads(odd.to_json())) == odd


def change(path, old, new, step):
    """One character in the lines of a step."""
    lines = path.read_text().splitlines(keepends=True)
    i = max(i for i, line in enumerate(lines) if json.loads(line)["step"] == step)
    assert old in lines[i]
    lines[i] = lines[i].replace(old, new, 1)
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("rollouts", '"reward": 0.0', '"reward": 1.0'),
        ("rollouts", "[9, 2, 1]", "[8, 2, 1]"),
        ("rollouts", "-0.0333", "-0.0334"),
        ("rollouts", '"completion": "z"', '"completion": "y"'),
        ("rollouts", '"block_size"', '"clock_size"'),
        ("graded", '{"equal": 1}', '{"equal": 2}'),
        ("graded", '"reward/none_count": 1.0', '"reward/none_count": 2.0'),
        ("graded", '"proof": "', '"proof": "0'),
    ],
)
def test_a_step_that_was_changed_on_disk_is_named_and_sampled_again(folder, name, old, new, caplog):
    change(getattr(folder, name), old, new, 4)
    log = RolloutLog(folder, 2)
    assert take(log, 3) == graded(3) and not caplog.text
    assert take(log, 4) is None
    assert f"{folder.rollouts} was damaged or edited in step 4, which is sampled again" in caplog.text
    assert steps_in(folder.graded) == [1, 2, 3]


def test_what_was_changed_up_to_the_checkpoint_is_named(folder, caplog):
    """Nothing is taken from there; who reads the log later should know."""
    change(folder.rollouts, '"reward": 0.0', '"reward": 1.0', 1)
    change(folder.graded, '{"equal": 1}', '{"equal": 2}', 3)
    assert take(RolloutLog(folder, 3), 4) == graded(4)
    assert f"{folder.rollouts} or graded.jsonl was damaged or edited in step 1, 3" in caplog.text


def test_rows_that_are_lost_up_to_the_checkpoint_are_named(folder, caplog):
    folder.rollouts.write_text("".join(folder.rollouts.read_text().splitlines(keepends=True)[4:]))
    assert take(RolloutLog(folder, 3), 4) == graded(4)
    assert "in step 1" in caplog.text


def test_lines_of_before_there_was_a_proof_are_taken(folder, caplog):
    lines = [json.loads(line) for line in folder.graded.read_text().splitlines()]
    folder.graded.write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k != "proof"}) + "\n" for line in lines)
    )
    assert take(RolloutLog(folder, 3), 4) == graded(4) and not caplog.text


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, "[]", "{}", '{"step": "4"}', '{"step": 4}', "\0" * 50],
    ids=lambda line: repr(line)[:20],
)
@pytest.mark.parametrize("name", ["rollouts", "graded"])
def test_a_line_of_another_shape_never_ends_a_run(folder, name, line):
    path = getattr(folder, name)
    path.write_text(path.read_text() + line + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = RolloutLog(folder, 3)
        found = take(log, 4)
        assert found in (None, graded(4)) and take(log, 5) is None
    if line == '{"step": 4}':
        assert found is None, "the step's own line, or one of its rows, was replaced"


def test_what_a_clock_measures_is_no_part_of_the_proof(folder):
    """So that a step which is done again has the same line but for its seconds."""
    change(folder.graded, '"seconds": 0.25', '"seconds": 9.25', 4)
    assert take(RolloutLog(folder, 3), 4).seconds == 9.25


@pytest.mark.parametrize("kind", ["advantage", "reward"])
def test_a_row_says_whether_its_credit_is_an_advantage_or_a_reward(tmp_path, kind):
    folder = RunFolder(tmp_path)
    given = graded(1, kind=kind)
    RolloutLog(folder, 0).put(1, "w", given, DESCRIBED, 4)
    rows = [json.loads(line) for line in folder.rollouts.read_text().splitlines()]
    names = {"advantage"} if kind == "advantage" else {"credit", "credit_kind"}
    assert all({"advantage", "credit", "credit_kind"} & row.keys() == names for row in rows)
    assert [row["advantage" if kind == "advantage" else "credit"] for row in rows] == [0.1, -0.1, None, None]
    assert RolloutLog(folder, 0).take(1, "w", keys_of(1), PROMPTS) == given


def test_a_step_that_was_refilled_is_taken_with_what_followed(folder):
    """The keys of its first draw are known; the rest follows from their rewards."""
    steps = RolloutLog(folder, 0)
    first = steps.take(1, "w1", keys_of(1)[:2], PROMPTS[:2], refilled=True)
    assert first is not None and [rollout.key for rollout in first.rollouts] == keys_of(1)
    assert steps.take(2, "w2", keys_of(2)[:2], PROMPTS[:2]) is None
