"""Whole RL runs with rewards that are more than a verifier: a judge (at an endpoint, and loaded here), and programs."""

import numpy as np
import pytest
from end_to_end import RL, read_jsonl, write_json
from judge_server import judge_checkpoint, serving

from configs import load_config
from reward.code.sandbox import INSTALL_HINT, find_isolation
from train import rl
from train.algorithm.advantages import step_gae, zscore
from train.setup import models as setup_models

needs_sandbox = pytest.mark.skipif(find_isolation() is None, reason=f"no sandbox here: {INSTALL_HINT}")
NO_EVALUATION = "evaluation.eval_dataset=''"


@pytest.fixture
def server():
    with serving() as made:
        yield made


def run(shop, *arguments, reward=None):
    rl.run(load_config(shop.arguments(RL, *arguments, reward=reward)))
    rollouts = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    metrics = [row for row in read_jsonl(shop.runs / "rl" / "metrics.jsonl") if "reward/mean" in row]
    assert [row["step"] for row in metrics] == [1, 2] and {row["step"] for row in rollouts} == {1, 2}
    return rollouts, metrics


def asked(request):
    return request["messages"][0]["content"]


def excerpt_of(request):
    return asked(request).split("===== excerpt =====\n")[1].split("\n===== end of excerpt")[0]


@pytest.mark.slow
def test_marks_of_a_judge(shop, server):
    server.reply = lambda request: f"\\boxed{{{1 + len(asked(request)) % 10}}}"
    rollouts, metrics = run(shop, f"judge.api={server.url}", "judge.model=judge", NO_EVALUATION)
    assert all(0.0 <= row["reward"] <= 1.0 for row in rollouts) and len({row["reward"] for row in rollouts}) > 2
    assert all(row["updates"] >= 1 and row["grad_norm"] > 0 for row in metrics)
    assert {request["model"] for request in server.requests} == {"judge"}


@pytest.mark.slow
def test_process_rewards_of_a_judge_under_dllm_rls_keys(shop, server):
    """Two steps: the groups that the outcome keeps are judged in chunks of 3 tokens; rewards lie on the tokens that
    completed their chunk, and advantages are what is yet to come."""
    server.reply = lambda request: "\\boxed{1}" if sum(map(ord, excerpt_of(request))) % 2 else "\\boxed{-1}"
    rollouts, metrics = run(
        shop, f"judge.api={server.url}", "judge.model=judge", "judge.mode=process", NO_EVALUATION,
        "rollout.reward_model.reward_chunk_length=3", "rollout.reward_model.k_sample=2",
        "rollout.reward_model.temperature=0.3", "training.gam=0.5", reward="share_of_small_digits",
    )  # fmt: skip
    judged = [row for row in rollouts if row["token_rewards"] is not None]
    assert judged and all((row["advantage"] is None) == (row["token_rewards"] is None) for row in rollouts)
    for row in judged:
        steps = np.array(row["canvas_step_map"][: row["num_response_tokens"]])
        given = np.array(row["token_rewards"])
        to_come, _ = step_gae(given, np.zeros(len(given)), steps, gamma=0.5, lam=1.0)
        assert len(given) == len(steps) and row["advantage"] == pytest.approx(to_come)
        for first in range(0, len(steps), 3):
            chunk, place = given[first : first + 3], steps[first : first + 3]
            assert (chunk[place < place.max()] == 0).all() and len(set(chunk[place == place.max()])) == 1
    assert any(len(set(row["advantage"])) > 1 for row in judged)
    for step, row in enumerate(metrics, 1):
        mine = [r for r in judged if r["step"] == step]
        assert row["updates"] >= 1 and row["trained_tokens"] == sum(r["num_response_tokens"] for r in mine)
        assert row["reward/judge_chunks"] == sum(-(-r["num_response_tokens"] // 3) for r in mine)
        assert -1 <= row["reward/judge_score"] <= 1 and row["time/judge_seconds"] > 0
    assert {request["temperature"] for request in server.requests} == {0.3}
    assert {request["seed"] for request in server.requests} == {0, 1}


@pytest.mark.slow
def test_a_judge_that_never_answers_leaves_everything_out(shop, server, capsys):
    server.reply = lambda request: (500, "broken")
    arguments = [f"judge.api={server.url}", "judge.mode=process", "judge.attempts=1", NO_EVALUATION]
    rollouts, metrics = run(shop, *arguments, reward="share_of_small_digits")
    assert all(row["advantage"] is None for row in rollouts)
    assert all(row["groups_dropped/judge"] >= 1 and "loss" not in row for row in metrics)
    assert "groups dropped (judge)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_local_judge_and_a_value_model(shop, tmp_path):
    folder = judge_checkpoint(tmp_path / "judge")
    _, metrics = run(
        shop, f"model.process_reward_model={folder}", "rollout.reward_model.reward_chunk_length=5",
        "rollout.reward_model.max_model_len=8192", "rollout.reward_model.max_generation_token=4", NO_EVALUATION,
        f"model.value_base_model={shop.model}", "training.gam=0.99",
        reward="share_of_small_digits",
    )  # fmt: skip
    assert all(row["reward/judge_unanswered_count"] == 0 and row["reward/judge_chunks"] > 0 for row in metrics)
    assert all(row["value/updates"] >= 1 and row["updates"] >= 1 for row in metrics)
    assert all(row["reward/judge_unclear_count"] > 0 for row in metrics)  # a random model says nothing that can be read


SHAPED = """
def small_digits(prompts, completions, **columns):
    return [0.1 * sum(c in "01234" for c in text) / max(1, len(text)) for text in completions]
"""


@pytest.mark.slow
@needs_sandbox
def test_programs_with_a_shaped_reward_beside_the_tests(shop):
    """What the tiny model writes continues a comment, so that every other task passes. The shaped part trains, since
    the tests say the same of a whole group."""
    code = {"test_method": "function", "test_time_limit": 1}
    tasks = [
        code
        | {"question": f"{i}=", "prefix": f"def f():\n    return {i}  #", "test_list": [f"assert f() == {i // 2 * 2}"]}
        for i in range(6)
    ]
    path = write_json(shop.folder / "code.json", tasks)
    (shop.folder / "shaped.py").write_text(SHAPED)
    rollouts, metrics = run(
        shop, f"dataset.train_dataset={path}", "dataset.data_type=code", "reward.beside_verifier=true",
        f"reward.function={shop.folder}/shaped.py:small_digits", "execute.num_chunk=2", "execute.all_or_nothing=true",
        f"evaluation.eval_dataset={path}", "evaluation.data_type=code", "evaluation.max_tasks=2", "evaluation.top_k=0",
    )  # fmt: skip
    for row in rollouts:
        shaped = 0.1 * sum(c in "01234" for c in row["completion"]) / max(1, len(row["completion"]))
        assert row["reward"] == pytest.approx(shaped) or row["reward"] == pytest.approx(1.0 + shaped)
    assert len({row["reward"] >= 1.0 for row in rollouts}) == 2
    for step, row in enumerate(metrics, 1):
        mine = [r["reward"] for r in rollouts if r["step"] == step]
        assert row["updates"] >= 1 and row["reward/mean"] == pytest.approx(np.mean(mine))
        assert row["reward/verifier_mean"] == pytest.approx(np.mean([r >= 1.0 for r in mine]))
        assert row["reward/function_mean"] == pytest.approx(row["reward/mean"] - row["reward/verifier_mean"])
        assert row["reward/code_passed_count"] == sum(r >= 1.0 for r in mine)
    written = read_jsonl(shop.runs / "rl" / "metrics.jsonl")
    values = [value for row in written for name, value in row.items() if name.startswith("eval/") and "/reward" in name]
    assert values and all(value * 4 == round(value * 4) for value in values)  # the tests alone, of 2 tasks x 2 answers


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["judge.api=http://127.0.0.1:9/v1"], "nothing answers"),
        (["judge.local=/nowhere/judge"], "judge.local: .*nowhere"),
        (["judge.local=/nowhere", "judge.api=http://127.0.0.1:9/v1"], "keep one"),
        (["judge.mode=process"], "needs a judge"),
        (["judge.mode=process", "reward.speed_weight=0.1"], "speed_weight"),
        (["judge.mode=process", "judge.api=http://127.0.0.1:9/v1"], "nothing answers"),
        (["model.process_reward_model=/nowhere/judge"], "model.process_reward_model: .*nowhere"),
        (["model.process_reward_model=/nowhere/judge", "judge.max_tokens=15000"], "no room for a question"),
        (["reward.beside_verifier=true"], "reward.function"),
    ],
)
def test_what_cannot_work_is_reported_before_a_model_is_loaded(shop, monkeypatch, arguments, says):
    monkeypatch.setattr(setup_models, "load_model", lambda *a: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=says):
        rl.run(load_config(shop.arguments(RL, *arguments, NO_EVALUATION, "dry_run=true", reward=None)))


@pytest.mark.slow
def test_parts_of_a_reward_are_logged_with_each_response(shop):
    functions = f"reward.function=[{shop.reward}:share_of_small_digits,{shop.reward}:always_one]"
    typed = [functions, "reward.weights={always_one: 0.25}", "experiment.total_step=1", "evaluation.eval_dataset=null"]
    rl.run(load_config(shop.arguments(RL, *typed), command="rl"))
    rows = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    assert rows and all(set(row["rewards"]) == {"share_of_small_digits", "always_one"} for row in rows)
    for row in rows:
        assert row["reward"] == pytest.approx(row["rewards"]["share_of_small_digits"] + 0.25)
    (metrics,) = read_jsonl(shop.runs / "rl" / "metrics.jsonl")
    assert metrics["reward/always_one_mean"] == 1.0


@pytest.mark.slow
def test_parts_that_are_normalised_each_in_their_group_give_advantages_by_weight(shop):
    functions = f"reward.function=[{shop.reward}:share_of_small_digits,{shop.reward}:by_answer]"
    keys = [functions, "reward.combine=normalise", "reward.weights={by_answer: 0.5}", "experiment.total_step=1"]
    rl.run(load_config(shop.arguments(RL, *keys, NO_EVALUATION, reward=None), command="rl"))
    rows = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    trained = 0
    for first in range(0, len(rows), 4):
        group = rows[first : first + 4]
        share, by_answer = (np.array([row["rewards"][name] for row in group]) for name in group[0]["rewards"])
        if group[0]["advantage"] is not None:
            wanted = zscore(share) + 0.5 * zscore(by_answer)
            assert [row["advantage"] for row in group] == pytest.approx(wanted.tolist())
            trained += 1
    assert trained
    with pytest.raises(ValueError, match="reward.combine=normalise needs several rewards"):
        rl.run(load_config(shop.arguments(RL, "reward.combine=normalise"), command="rl"))
