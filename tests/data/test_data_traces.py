"""Rows of a model's own responses as examples of fine-tuning."""

import json

import pytest

from data.tasks import load_examples
from data.traces import is_right, speed_of
from sample import Rollout

ROW = {
    "task": "a",
    "prompt": "1=",
    "completion": "2",
    "key": ["eval", "a", 0],
    "prompt_ids": [5, 6],
    "canvas_ids": [7, 2, 0],
    "canvas_step_map": [1, 1, 0],
    "canvas_logprobs": [-0.5, -0.25, 0.0],
    "num_response_tokens": 2,
    "finish_reason": "stop",
    "num_steps": 1,
    "reward": 1.0,
}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_row_with_a_trace_is_an_example_of_ids_alone(tmp_path):
    (example,) = load_examples(written(tmp_path / "samples.jsonl", ROW))
    assert (example.prompt, example.response, example.step_map) == ("", "", None)
    assert example.trace["canvas_ids"] == [7, 2, 0] and "completion" not in example.trace
    assert speed_of(example.trace) == 2.0 and is_right(example.trace)
    assert not is_right({"reward": 0.5}) and not is_right({"reward": None}) and not is_right({})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"canvas_ids": "7 2"}, "'canvas_ids' must be a list of numbers"),
        ({"canvas_step_map": None}, "'canvas_step_map' must be a list of numbers"),
        ({"canvas_step_map": [1, 1]}, "differ in length"),
        ({"num_response_tokens": 4}, "differ in length"),
        ({"num_response_tokens": "2"}, "'num_response_tokens' must be a whole number"),
        ({"num_steps": None}, "'num_steps' must be a whole number"),
        ({"num_steps": 2**31}, "'num_steps' must be a whole number"),
        ({"prompt_ids": [5, -1]}, "'prompt_ids' holds -1: token ids are whole numbers, 0 or more"),
        ({"canvas_ids": [7, -2, 0]}, "'canvas_ids' holds -2"),
        ({"canvas_step_map": [1, -1, 0]}, "'canvas_step_map' holds -1: steps are from 0 to num_steps \\+ 1, here 2"),
        ({"canvas_step_map": [1, 10**18, 0]}, "'canvas_step_map' holds 1000000000000000000"),
        ({"suffix_ids": "3"}, "'suffix_ids' must be a list"),
        ({"suffix_ids": [-3]}, "'suffix_ids' must be a list"),
        ({"reward": "1.0"}, "'reward' is str '1.0', expected a number or null"),
        ({"task": ["a"]}, "'task' is list .*, expected a text or a number"),
        ({"set": 3}, "'set' is int 3, expected a text"),
        ({"entry": 3}, "'entry' is int 3, expected a text"),
        ({"events": [1]}, "'events' is list .*, expected the lists of its writes"),
        ({"block_size": [4]}, "'block_size' is list .*, expected a whole number"),
        ({"block_size": 0}, "'block_size' is int 0, expected a whole number"),
    ],
)
def test_a_trace_of_another_shape_stops_with_its_place(tmp_path, change, words):
    with pytest.raises(ValueError, match=f"line 2.*{words}"):
        load_examples(written(tmp_path / "samples.jsonl", ROW, ROW | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": ["0" * 16]}, "has pictures"),
        ({"images": ["0" * 16], "prompt_ids": [-200]}, "has pictures"),
        ({"num_response_tokens": 0}, "an empty response"),
        ({"canvas_step_map": [0, 0, 1]}, "no token of the response that a step decided"),
        ({"canvas_step_map": [2, 2, 0]}, "no token of the response that a step decided"),
    ],
)
def test_a_trace_that_cannot_be_trained_is_left_out(tmp_path, change, words):
    with pytest.warns(UserWarning, match=f"left out 1 of 2 rows.*{words}"):
        assert len(load_examples(written(tmp_path / "samples.jsonl", ROW, ROW | change))) == 1


def test_what_no_training_reads_may_be_absent(tmp_path):
    """Rows of other programs, and of earlier versions."""
    lacking = {name: ROW[name] for name in ROW if name not in ("finish_reason", "key", "reward", "task")}
    nulls = {"events": None, "suffix_ids": None, "block_size": None, "set": None, "reward": None, "routing": 5}
    for row in (lacking, lacking | nulls):
        (example,) = load_examples(written(tmp_path / "samples.jsonl", row))
        rollout = Rollout.from_dict({**example.trace, "key": (0,)})
        assert (rollout.token_ids, rollout.suffix_ids, rollout.events) == ([7, 2], [], None)


def test_a_step_map_of_texts_has_a_largest_step(tmp_path):
    rows = [{"prompt": "1=", "response": "2", "step_map": [step]} for step in (2**31 - 1, 10**18)]
    assert load_examples(written(tmp_path / "examples.jsonl", rows[0]))
    with pytest.raises(ValueError, match="line 2: field 'step_map' holds 1000000000000000000"):
        load_examples(written(tmp_path / "examples.jsonl", *rows))
