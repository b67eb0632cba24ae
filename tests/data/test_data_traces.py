"""Rows of a model's own responses as examples of fine-tuning."""

import json

import pytest

from data.tasks import load_examples
from data.traces import is_right, speed_of

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
    ],
)
def test_a_trace_of_another_shape_stops_with_its_place(tmp_path, change, words):
    with pytest.raises(ValueError, match=f"line 2.*{words}"):
        load_examples(written(tmp_path / "samples.jsonl", ROW, ROW | change))


@pytest.mark.parametrize(
    ("change", "words"), [({"images": ["0" * 16]}, "has pictures"), ({"num_response_tokens": 0}, "an empty response")]
)
def test_a_trace_that_cannot_be_trained_is_left_out(tmp_path, change, words):
    with pytest.warns(UserWarning, match=f"left out 1 of 2 rows.*{words}"):
        assert len(load_examples(written(tmp_path / "samples.jsonl", ROW, ROW | change))) == 1
