import importlib.util
import re
from pathlib import Path

import pytest

from data import tiny_addition

FILE = Path(__file__).resolve().parents[2] / "data" / "tiny_addition.py"


@pytest.fixture(scope="module")
def rows():
    return tiny_addition.addition_rows(5)


def test_every_answer_is_the_sum_in_base_four_and_begins_at_token_sixteen(rows):
    for name in ("tiny_addition_test", "tiny_addition_train"):
        for row in rows[name]:
            assert len(row["question"]) == 16 and row["ground_truth_answer"] == sum_of(row["question"])


def sum_of(question):
    a, b = re.fullmatch(r"::([0-3]{6})\+([0-3]{6})=", question).groups()
    return tiny_addition.digits_of(int(a, 4) + int(b, 4), 7)


def test_in_the_answers_of_sft_some_digits_are_wrong_wherever_they_stand(rows):
    pairs = [(row["response"], sum_of(row["prompt"])) for row in rows["tiny_addition_sft"]]
    wrong = [sum(answer[place] != right[place] for answer, right in pairs) / len(pairs) for place in range(7)]
    assert all(len(answer) == 7 and set(answer) <= set("0123") for answer, _ in pairs)
    assert all(0.15 < share < 0.23 for share in wrong), wrong  # of one in four drawn, three in four are wrong


def test_numbers_of_sft_have_every_length_and_those_of_the_test_almost_always_six_or_five_digits(rows):
    lengths = {
        name: [len(str(int(digits))) for row in part for digits in numbers_of(row)] for name, part in rows.items()
    }
    share = {name: [found.count(length) / len(found) for length in range(1, 7)] for name, found in lengths.items()}
    assert min(share["tiny_addition_sft"]) > 0.08 and share["tiny_addition_sft"][5] < 0.2
    assert sum(share["tiny_addition_test"][4:]) > 0.9 and sum(share["tiny_addition_train"][4:]) > 0.9


def numbers_of(row):
    return re.findall(r"[0-3]{6}", row.get("question") or row["prompt"])


def test_no_pair_is_added_twice_in_any_split_and_order(rows):
    asked = [row.get("question") or row["prompt"] for part in rows.values() for row in part]
    assert len({frozenset(re.findall(r"[0-3]+", question)) for question in asked}) == len(asked) == 9256


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("0333302", "0333302", 1.0),
        ("0333302<eos>1", "0333302", 1.0),
        ("333302<eos>", "0333302", 0.0),
        ("0333303<eos>", "0333302", 0.0),
        ("<eos>0333302", "0333302", 0.0),
        ("", "0333302", 0.0),
        ("0333302", None, None),
    ],
)
def test_reward_is_the_exact_sum_before_the_first_eos(completion, answer, reward):
    assert tiny_addition.addition_reward([""], [completion], ground_truth_answer=[answer], num_steps=[3]) == [reward]


def test_the_file_loads_from_its_path_alone():
    spec = importlib.util.spec_from_file_location("alone", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not re.search(r"^(?:from|import) (?:data|configs|runtime)", FILE.read_text(), re.M)
    assert module.addition_rows(1) == tiny_addition.addition_rows(1)
