"""No line of tests/golden/field/fails.jsonl (what came out wrong in the field) is without a test of its right value."""

import ast
import json
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Those of math, options and code have their tests line by line: reward/test_reward_math_field.py, _code_field.py.
TESTED = {
    "O-o036": "data/test_data_answers.py::test_an_index_is_no_option",
    "E-k002": "models/test_models_strange.py::test_a_single_file_goes_before_a_stale_index",
    "E-k005": "models/test_models_strange.py::test_a_head_of_its_own_beside_a_tied_one_is_refused",
    "E-k012b": "train/setup/test_train_prompts.py::test_ids_beyond_the_embedding_are_named_before_training",
    "E-k015": "models/test_models_strange.py::test_weights_that_are_no_floats_are_refused",
    "E-rs1": "test_end_to_end_changes.py::test_a_data_file_that_has_changed_is_refused_by_key_and_path",
    "Y-y001": "configs/test_configs_arguments.py::test_a_template_stays_as_typed",
    "Y-y002": "configs/test_configs_arguments.py::test_a_template_stays_as_typed",
    "Y-y006": "configs/test_configs_arguments.py::test_text_stays_as_typed",
    "Y-y008": "configs/test_configs_arguments.py::test_text_stays_as_typed",
    "Y-y011": "configs/test_configs_arguments.py::test_text_stays_as_typed",
    "D-d040": "data/test_data_answers.py::test_gsm8k_answers_mean_the_number_behind_their_mark",
    "D-t001": "train/setup/test_train_prompts.py::test_a_question_ends_no_turn_of_a_real_tokenizer",
    "P-p002": "data/test_data_conversations.py::test_a_system_column_is_the_system_turn",
    "P-p025": "data/test_data_conversations.py::test_a_system_column_is_the_system_turn",
    "R-asy": "reward/test_reward_function.py::test_an_asynchronous_function_is_awaited",
}
LINES = [json.loads(line) for line in (TESTS / "golden" / "field" / "fails.jsonl").read_text().splitlines()]


def test_every_line_has_a_test():
    line_by_line = [line["id"] for line in LINES if line["area"] in ("math", "option", "code")]
    assert {line["id"] for line in LINES} - set(line_by_line) == TESTED.keys() - {"O-o036"}
    assert "completion" not in next(line["input"] for line in LINES if line["id"] == "O-o036")


@pytest.mark.parametrize("place", sorted(set(TESTED.values())))
def test_the_tests_that_are_named_are_there(place):
    path, name = place.split("::")
    found = ast.parse((TESTS / path).read_text(encoding="utf-8")).body
    assert name in [node.name for node in found if isinstance(node, ast.FunctionDef)]
