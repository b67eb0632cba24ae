"""A sampling strategy and a target of a user's file, named in a YAML: RL of two steps, evaluation, and what is found
wrong before a model is loaded."""

import pytest
from end_to_end import EVAL, RL, read_jsonl, text_checkpoint

from configs import load_config
from train import evaluation, rl
from train.setup import models as setup_models

OWN = '''
import torch


def leftmost_first(proposal, masked_nb, k_n, choices, *, several=1):
    """The leftmost masked positions, `several` a step."""
    return masked_nb & (masked_nb.cumsum(-1) <= several)


def surprise(candidates, *, sign=-1.0):
    return sign * candidates.logp


def at_home(proposal, masked_nb, k_n, choices):
    raise ZeroDivisionError("not here")
'''


@pytest.fixture(autouse=True)
def own(shop):
    path = shop.folder / "own.py"
    path.write_text(OWN)
    return path


@pytest.mark.slow
def test_rl_of_two_steps_with_a_users_strategy_and_target(shop, own):
    arguments = [f"rollout.strategy={own}:leftmost_first", "rollout.strategy_params.several=2"]
    arguments += [f"rollout.target={own}:surprise", "rollout.target_params={sign: 1.0}"]
    arguments += [f"evaluation.strategy=[low_confidence_dynamic,{own}:leftmost_first]", "evaluation.top_k=0"]
    arguments += ["evaluation.strategy_params={several: 4}", "training.min_accuracy=0", "training.max_accuracy=1"]
    rl.run(load_config(shop.arguments(RL, *arguments)))
    rows = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    assert {row["step"] for row in rows} == {1, 2}
    for row in rows:
        steps = [step for step in row["canvas_step_map"] if step]
        assert steps == sorted(steps) and all(steps.count(step) <= 2 for step in steps)
        assert max(map(steps.count, steps)) == 2
    metrics = read_jsonl(shop.runs / "rl" / "metrics.jsonl")
    # the log-probability of a token at its step is recomputed by replay, whatever chose the step
    assert all(abs(row["mismatch_kl"]) < 1e-5 for row in metrics if "mismatch_kl" in row)
    names = {key.split("/")[1] for row in metrics for key in row if key.startswith("eval/") and key.count("/") > 1}
    assert {"dynamic-b4-T1", "leftmost_first-b4-T1"} <= names


@pytest.mark.slow
def test_an_evaluation_with_a_users_strategy(shop, own):
    arguments = [f"rollout.strategy=[sequential,{own}:leftmost_first]", "rollout.steps_per_block=4"]
    results = evaluation.run(load_config(shop.arguments(EVAL, *arguments, "rollout.temperature=0")))
    same = ("reward", "length", "tokens_per_forward")
    sequential, own = (results[name] for name in ("sequential-b4-greedy", "leftmost_first-b4-greedy"))
    assert [sequential[name] for name in same] == [own[name] for name in same]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["rollout.remasking_strategy=OWN:left"],
            "rollout.remasking_strategy: .*has no 'left'; nearest: leftmost_first",
        ),
        (["rollout.strategy=OWN:at_home"], r"rollout.strategy=OWN:at_home: ZeroDivisionError: not here \(OWN line"),
        (
            ["rollout.remasking_strategy=OWN:leftmost_first", "rollout.strategy_params.sevral=2"],
            "^rollout.strategy_params.sevral is unknown: .* Did you mean 'several'",
        ),
        (["rollout.strategy=OWN:surprise"], "is called with 4 arguments"),
        (["evaluation.target=OWN:leftmost_first"], "evaluation.target"),
        (["rollout.strategy_params.several=2"], "rollout.strategy_params={'several': 2}: .* is built in"),
    ],
)
@pytest.mark.parametrize("text", [RL, EVAL], ids=["rl", "eval"])
def test_what_is_wrong_with_a_users_strategy_is_reported_before_a_model_is_loaded(
    shop, own, monkeypatch, text, arguments, says
):
    def refuse(*arguments, **named):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(setup_models, "load_model", refuse)
    own = str(own)
    run = rl.run if text is RL else evaluation.run
    with pytest.raises(ValueError, match=says.replace("OWN", own)):
        run(load_config(shop.arguments(text, *(word.replace("OWN", own) for word in arguments))))
    assert not shop.runs.exists()


@pytest.mark.parametrize("text", [RL, EVAL], ids=["rl", "eval"])
def test_a_cache_that_a_family_does_not_have_is_reported_before_a_model_is_loaded(shop, monkeypatch, text):
    monkeypatch.setattr(setup_models, "load_model", lambda *arguments, **named: pytest.fail("a model was loaded"))
    llada = text_checkpoint(shop.folder / "llada", "llada")
    run = rl.run if text is RL else evaluation.run
    with pytest.raises(ValueError, match="rollout.cache: cache 'exact' does not exist for llada"):
        run(load_config(shop.arguments(text, f"model.pretrained_model={llada}", "rollout.cache=exact")))
    with pytest.raises(ValueError, match="rollout.edit_threshold=0.5: llada has full attention.*remask_threshold"):
        run(load_config(shop.arguments(text, f"model.pretrained_model={llada}", "rollout.edit_threshold=0.5")))
