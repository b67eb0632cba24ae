"""Which responses a distillation trains, and that it replays them as RL would."""

import json
from dataclasses import replace

import numpy as np
import pytest
from end_to_end import text_checkpoint
from trainees import make_config

from data.tasks import Example
from models import load_model
from sample import Sampler, SamplingConfig
from train.algorithm.masking import METHODS
from train.examples import DATA
from train.learner.batch import Replay
from train.setup.examples import for_model, make_samples, tokenise
from train.setup.traces import chosen_traces, fastest, of_first_tasks

TRACE = METHODS["trace"]


def example(task, reward, tokens, steps, **more):
    return Example(
        "", "", None, trace={"task": task, "reward": reward, "num_response_tokens": tokens, "num_steps": steps} | more
    )


def test_the_fastest_right_responses_of_each_task_are_kept():
    given = [
        example("a", 1.0, 8, 8),
        example("b", 0.0, 8, 1),
        example("a", 1.0, 8, 2),
        example("a", 0.5, 8, 1),
        example("a", 1.0, 9, 3),
        example("b", 1.0, 8, 8),
        example("c", None, 8, 1),
    ]
    assert fastest(given, 1, DATA) == [given[2], given[5]]
    assert fastest(given, 2, DATA) == [given[2], given[4], given[5]]
    assert fastest(given, 9, DATA) == [given[0], given[2], given[4], given[5]]


def test_responses_without_a_reward_are_counted(caplog):
    given = [example("a", 1.0, 8, 8), example("a", None, 8, 1), example("b", float("inf"), 8, 1)]
    assert fastest(given, 1, DATA) == given[:1]
    assert "dataset.optimization_data: 2 responses have no number as their reward: left out" in caplog.text


def test_responses_without_a_task_are_told_apart_by_their_prompts():
    given = [example(None, 1.0, 8, steps, prompt_ids=prompt) for prompt in ([5], [6]) for steps in (8, 2)]
    assert fastest(given, 1, DATA) == [given[1], given[3]]
    del given[1].trace["task"]
    assert fastest(given, 1, DATA) == [given[1], given[3]]


def test_the_first_tasks_are_counted_and_not_their_responses():
    given = [example(task, 1.0, 8, 8) for task in "abacb"]
    assert of_first_tasks(given, 2) == [given[0], given[1], given[2], given[4]]
    assert of_first_tasks(given, 0) == given
    texts = [Example("1=", "2", None)] * 3
    assert of_first_tasks([*texts, *given], 4) == [*texts, given[0], given[2]]


def test_tasks_of_different_sets_have_responses_of_their_own():
    """Ids are those of a set: MATH500 and GSM8K both have a task 1."""
    given = [example("1", 1.0, 8, 8, set="A"), example("1", 1.0, 8, 2, set="B")]
    assert fastest(given, 1, DATA) == given
    older = [example("1", 1.0, 8, 8, entry="A/top_k=1"), example("1", 1.0, 8, 2, entry="B/top_k=1")]
    assert fastest(older, 1, DATA) == older


def test_responses_of_a_model_that_was_compared_with_are_left_out(tmp_path, caplog):
    model = load_model(text_checkpoint(tmp_path))
    given = [example("1", 1.0, 8, 8, entry="plain"), example("1", 1.0, 8, 2, entry="compared/plain")]
    for count in (0, 1):
        config = make_config(training={"method": "trace"}, dataset={"traces_per_task": count})
        assert chosen_traces(given, config, model.spec, TRACE, DATA) == given[:1]
    assert "dataset.optimization_data: 1 responses of model.compared_with are left out" in caplog.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([example("a", 1.0, 8, 8), Example("1=", "2", None)], "1 of 2 examples are no responses of a model"),
        ([example("a", 0.0, 8, 8)], "none of the 1 responses is right"),
        ([example("a", None, 8, 8), example("a", float("nan"), 8, 8)], "none of the 2 responses has a number as its"),
    ],
)
def test_what_has_no_right_response_is_named(given, words):
    with pytest.raises(ValueError, match=f"^dataset.traces_per_task: {words}"):
        fastest(given, 1, DATA)


def test_blocks_of_another_size_are_refused_where_steps_are_replayed(tmp_path):
    model = load_model(text_checkpoint(tmp_path))
    config, given = make_config(training={"method": "trace"}), [example("a", 1.0, 8, 8, block_size=8)]
    with pytest.raises(ValueError, match=r"in blocks of 8, and training.block_size is 4"):
        chosen_traces(given, config, model.spec, TRACE, DATA)
    assert chosen_traces(given, config, model.spec, METHODS["random_masking"], DATA) == given
    assert chosen_traces([example("a", 1.0, 8, 8, block_size=4)], config, model.spec, TRACE, DATA)


@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_a_sampled_response_is_replayed_as_rl_replays_it(tmp_path, family):
    """What stood right of the stop while it was decided too."""
    model = load_model(text_checkpoint(tmp_path, family))
    sampling = SamplingConfig(
        block_size=4, max_new_tokens=16, temperature=1.0, threshold=0.03, stop_ids=list(range(3, 30))
    )
    rollouts = Sampler(model, sampling).generate([[5, 6, 7], [8] * 6, [9] * 5])
    config = make_config(training={"method": "trace", "block_size": 4, "shrink": 2})
    given = [Example("", "", None, trace=vars(rollout)) for rollout in rollouts]
    settings = for_model(config.training, model, TRACE, 4)
    tokenised = tokenise(given, model, replace(config, training=settings), TRACE)
    assert [t.response_ids for t in tokenised] == [rollout.token_ids for rollout in rollouts]
    mine = [make_samples(t, model, settings, TRACE, epoch=1, window=0) for t in tokenised]
    rl = Replay.of(model, sampling, config.training)
    theirs = rl.batch(rollouts, [1.0] * 3).samples
    flat = [sample for samples in mine for sample in samples]
    assert len(flat) == len(theirs) > 0
    for got, want in zip(flat, theirs, strict=True):
        for name in ("ids", "positions", "block", "copy", "index", "targets", "canvas_index", "round_index", "weight"):
            assert np.array_equal(getattr(got, name), getattr(want, name)), name
    assert any(any(r.canvas_step_map[r.num_response_tokens :]) for r in rollouts)


def test_what_edits_threw_away_is_no_target(tmp_path):
    """Each token of the answer is asked for once, in the state in which it was decided."""
    model = load_model(text_checkpoint(tmp_path))
    sampling = SamplingConfig(
        block_size=4, max_new_tokens=16, temperature=1.0, threshold=0.03, edit_threshold=0.02, stop_ids=[3]
    )
    rollouts = Sampler(model, sampling).generate([[5, 6, 7], [8] * 6, [9] * 5])
    assert sum(rollout.events.overwrites().sum() for rollout in rollouts) > 3
    config = make_config(training={"method": "trace", "block_size": 4})
    settings = for_model(config.training, model, TRACE, 4)
    given = [Example("", "", None, trace=json.loads(rollout.to_json())) for rollout in rollouts]
    tokenised = tokenise(given, model, replace(config, training=settings), TRACE)
    for example, rollout in zip(tokenised, rollouts, strict=True):
        samples = make_samples(example, model, settings, TRACE, epoch=1, window=0)
        said = sorted((place, int(t)) for s in samples for place, t in zip(s.canvas_index, s.targets, strict=True))
        assert said == [*enumerate(rollout.token_ids)]


RECORD = {
    "prompt_ids": [5, 6],
    "canvas_ids": [7, 2, 0, 0],
    "canvas_step_map": [1, 2, 2, 2],
    "canvas_logprobs": [-0.5, -0.25, -1.0, -1.0],
    "num_response_tokens": 2,
    "finish_reason": "stop",
    "num_steps": 2,
}
EVENTS = {
    "step": [1, 1, 2, 2, 2],
    "place": [0, 1, 1, 2, 3],
    "token": [7, 9, 2, 0, 0],
    "action": [7, 9, 2, 0, 0],
    "logprob": [-0.5, -2.0, -0.25, -1.0, -1.0],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(text_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"events": EVENTS},
        {"canvas_ids": [7, 2, 0, 5000]},
        {"prompt_ids": [5, 5000]},
        {"events": EVENTS | {"token": [7, 5000, 2, 0, 0]}},
        {"events": EVENTS | {"action": [7, 5000, 2, 0, 0]}},
    ],
)
def test_every_id_that_is_replayed_must_be_the_models(model, change):
    """Those right of the response too, and those that edits threw away."""
    config, given = make_config(training={"method": "trace"}), [Example("", "", None, trace=RECORD | change)]
    if change in ({}, {"events": EVENTS}):
        assert tokenise(given, model, config, TRACE)
        return
    with pytest.raises(ValueError, match="SFT data: example 0 holds the token .*5000"):
        tokenise(given, model, config, TRACE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"events": EVENTS | {"token": [7, 9, 2, 0]}}, r"rollout \(0,\) has events of 5 step and 5 place and 4 token"),
        ({"events": EVENTS | {"step": [1, 1, 2, 2, 3]}}, r"rollout \(0,\) has events outside its 4 places or 2 steps"),
        ({"suffix_ids": [3]}, "response 0 has suffix_ids"),
    ],
)
def test_a_damaged_record_is_refused_before_the_model_is_loaded(model, change, words):
    config = make_config(training={"method": "trace"})
    assert chosen_traces([Example("", "", None, trace=RECORD | {"events": EVENTS})], config, model.spec, TRACE, DATA)
    with pytest.raises(ValueError, match=f"^{DATA}: {words}"):
        chosen_traces([Example("", "", None, trace=RECORD | change)], config, model.spec, TRACE, DATA)


def test_experts_are_replayed_by_rl_alone(model):
    """A recipe of RL as it is: rows of an evaluation have none recorded."""
    config = make_config(training={"method": "trace", "block_size": 4, "replay_routing": True})
    settings = for_model(config.training, model, TRACE, 4)
    (one,) = tokenise([Example("", "", None, trace=RECORD)], model, replace(config, training=settings), TRACE)
    assert make_samples(one, model, settings, TRACE, epoch=1, window=0)
