import importlib.util
import random
import re
from pathlib import Path

import pytest

from data import tiny_brackets
from data.tiny_brackets import brackets_reward, fits, is_balanced

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows():
    return tiny_brackets.brackets_rows(4)


def test_every_example_earns_the_reward_of_its_question(rows):
    for row in rows["tiny_brackets_sft"]:
        assert brackets_reward([""], [row["response"] + "<eos>)"], question=[row["prompt"]]) == [1.0]
        assert len(row["response"]) == 12 and row["prompt"].count(".") == 8


def test_no_question_occurs_twice_in_any_split(rows):
    asked = [row.get("question") or row["prompt"] for part in rows.values() for row in part]
    assert len(set(asked)) == len(asked) == 6556


def test_every_shape_of_sequence_is_drawn(rows):
    """132 ways to nest six pairs, each of which an example, at some probability, shows."""
    draw = random.Random(0)
    shapes = {tiny_brackets.balanced(draw).replace("[", "(").replace("]", ")") for _ in range(20000)}
    assert len(shapes) == 132 and all(is_balanced(shape) for shape in shapes)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("()[]", 1.0),
        ("([])", 0.0),
        ("()[]<eos>(", 1.0),
        ("()[)", 0.0),
        ("()[][]", 0.0),
        ("()[", 0.0),
        ("()..", 0.0),
        ("()  ", 0.0),
        ("", 0.0),
    ],
)
def test_reward_wants_what_is_given_and_every_bracket_closed(completion, reward):
    assert brackets_reward([""], [completion], question=[".)..="], num_steps=[3]) == [reward]


def test_any_sequence_that_fits_is_right():
    for text in ("()()", "(())", "([])", "()[]"):
        assert fits("(...=", text) and is_balanced(text)
    assert not is_balanced("([)]") and not is_balanced(")(") and not fits("[...=", "(())")


def test_the_file_loads_from_its_path_alone():
    path = ROOT / "data" / "tiny_brackets.py"
    spec = importlib.util.spec_from_file_location("alone", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not re.search(r"^(?:from|import) (?:data|configs|runtime)", path.read_text(), re.M)
    assert module.brackets_rows(1) == tiny_brackets.brackets_rows(1)
