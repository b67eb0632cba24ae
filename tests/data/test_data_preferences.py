"""Pairs of a chosen and a rejected response: the forms in which they are published, and what is wrong with a row."""

import re

import pytest

from data.preferences import Pair, load_pairs
from data.tasks import Example, load_examples

HI, YO, BYE = ({"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yo"), ("assistant", "bye")))
SYSTEM = {"role": "system", "content": "s"}
ASKED, TWICE = (("user", "hi"),), (("user", "hi"), ("assistant", "bye"), ("user", "hi"))
TEXTS = {"prompt": "hi", "chosen": "yo", "rejected": "bye"}


def pair(prompt, turns=()):
    return Pair(Example(prompt, "yo", None, turns), Example(prompt, "bye", None, turns))


@pytest.mark.parametrize(
    ("row", "want"),
    [
        (TEXTS, pair("hi")),
        (TEXTS | {"prompt": [HI]}, pair("", ASKED)),
        ({"prompt": [HI], "chosen": [YO], "rejected": [BYE]}, pair("", ASKED)),
        ({"prompt": "hi", "chosen": [YO], "rejected": [BYE]}, pair("", ASKED)),
        ({"prompt": "hi", "chosen": [HI, YO], "rejected": [HI, BYE]}, pair("", ASKED)),
        ({"chosen": [HI, YO], "rejected": [HI, BYE], "score_chosen": 7.0}, pair("", ASKED)),
        (
            {"chosen": [HI, BYE, HI, YO], "rejected": [HI, BYE, HI, BYE], "system": "s"},
            pair("", (("system", "s"), *TWICE)),
        ),
        ({"prompt": [HI], "chosen": [BYE, HI, YO], "rejected": [BYE, HI, BYE]}, pair("", TWICE)),
        ({"prompt": "hi", "chosen": [BYE, HI, YO], "rejected": [BYE, HI, BYE]}, pair("", TWICE)),
        ({"prompt": [HI], "chosen": [HI, BYE, HI, YO], "rejected": [HI, BYE, HI, BYE]}, pair("", TWICE)),
        ({"prompt": [HI, BYE, HI], "chosen": [YO], "rejected": [BYE]}, pair("", TWICE)),
        (
            {"prompt": [SYSTEM, HI], "chosen": [HI, YO], "rejected": [HI, BYE]},
            pair("", (("system", "s"), *ASKED)),
        ),
        (
            {"prompt": [HI], "chosen": [SYSTEM, HI, YO], "rejected": [SYSTEM, HI, BYE]},
            pair("", (("system", "s"), *ASKED)),
        ),
    ],
)
def test_the_forms_in_which_pairs_are_published(write, row, want):
    assert load_pairs(write("pairs.json", [row])) == [want]


def test_columns_are_renamed(write, recwarn):
    row = {"question": "hi", "win": "yo", "lose": "bye"}
    columns = {"prompt": "question", "chosen": "win", "rejected": "lose"}
    assert load_pairs(write("pairs.json", [row]), columns=columns) == [pair("hi")]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "hi", "chosen": "yo"}, "'rejected' is missing"),
        ({"chosen": "yo", "rejected": "bye"}, "'prompt' is missing"),
        ({"prompt": "p", "response": "r"}, "'chosen' is missing; the row has prompt, response"),
        (TEXTS | {"rejected": [BYE]}, "must both be texts, or both lists of turns"),
        (TEXTS | {"rejected": 7}, "'rejected' is int 7, expected text"),
        ({"chosen": [YO], "rejected": [BYE]}, "has no turn of the user, and the row no 'prompt'"),
        ({"chosen": [HI, "x"], "rejected": [HI, BYE]}, "turn 2: no role"),
    ],
)
def test_a_file_of_another_kind_is_an_error(write, row, says):
    with pytest.raises(ValueError, match=says):
        load_pairs(write("pairs.json", [TEXTS, row]))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (TEXTS | {"rejected": "yo"}, "rejected is the same as 'chosen'"),
        (TEXTS | {"rejected": " "}, "rejected is empty"),
        (TEXTS | {"chosen": None}, "chosen is null"),
        ({"chosen": [HI, YO], "rejected": [HI, HI]}, "does not end with a response of the assistant"),
        ({"chosen": [HI, YO], "rejected": [HI, YO, BYE]}, "differs from 'chosen' before its last turn"),
        (TEXTS | {"chosen": None, "rejected": [BYE]}, "chosen is null"),
        (TEXTS | {"chosen": [YO], "rejected": None}, "rejected is null"),
        (TEXTS | {"chosen": [YO], "rejected": []}, "rejected is empty"),
        ({"prompt": [YO], "chosen": [YO], "rejected": [BYE]}, "prompt does not end with a turn of the user"),
        (TEXTS | {"prompt": [HI, YO]}, "prompt does not end with a turn of the user"),
        ({"prompt": [HI, YO], "chosen": [YO], "rejected": [BYE]}, "prompt does not end with a turn of the user"),
        (
            {"prompt": "hi", "chosen": [SYSTEM, YO], "rejected": [SYSTEM, BYE]},
            "chosen has a system turn after 'prompt'",
        ),
        (
            {"prompt": [HI], "chosen": [SYSTEM, YO], "rejected": [SYSTEM, BYE]},
            "chosen has a system turn after 'prompt'",
        ),
        (
            {"prompt": [HI, BYE, HI], "chosen": [HI, YO], "rejected": [HI, BYE]},
            "chosen begins with a turn of the user, but not with those of 'prompt'",
        ),
        (
            {
                "prompt": [SYSTEM, HI],
                "chosen": [SYSTEM | {"content": "t"}, HI, YO],
                "rejected": [SYSTEM | {"content": "t"}, HI, BYE],
            },
            "chosen begins with a turn of the user, but not with those of 'prompt'",
        ),
        ({"chosen": [HI, BYE, YO], "rejected": [HI, BYE, BYE]}, "chosen has no turn of the user before its response"),
        (TEXTS | {"prompt": "\ud800"}, "holds a lone surrogate"),
    ],
)
def test_a_row_that_is_no_pair_is_left_out_and_counted(write, row, says):
    path = write("pairs.json", [row, TEXTS])
    with pytest.warns(UserWarning, match=f"left out 1 of 2 rows: .*{says}"):
        assert load_pairs(path) == [pair("hi")]
    with pytest.raises(ValueError, match=f"no usable row, all 1 were left out: .*{says}"):
        load_pairs(write("alone.json", [row]))


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        (TEXTS | {"system": "s", "score": 1.0, "note": None}, "system (1 rows), score (1 rows)"),
        (TEXTS | {"prompt": [SYSTEM, HI], "system_prompt": "other"}, "system_prompt (1 rows)"),
        ({"prompt": "ho", "chosen": [HI, YO], "rejected": [HI, BYE]}, "prompt (1 rows)"),
    ],
)
def test_columns_that_no_pair_shows_are_named(write, row, unused):
    with pytest.warns(UserWarning, match=f"columns that DPO does not use: {re.escape(unused)}$"):
        load_pairs(write("pairs.json", [row]))


@pytest.mark.parametrize(
    "row", [TEXTS, TEXTS | {"prompt": [HI], "system": "s"}, {"prompt": "hi", "chosen": [HI, YO], "rejected": [HI, BYE]}]
)
def test_columns_in_use_are_not_named(write, row, recwarn):
    load_pairs(write("pairs.json", [row]))
    assert not recwarn.list


def test_pairs_in_a_plain_fine_tuning_are_named(write):
    with pytest.raises(ValueError, match="'chosen' and 'rejected' are a pair: set training.sft_objective=dpo"):
        load_examples(write("pairs.json", [TEXTS]))


def test_responses_of_a_model_are_given_unpaired_and_never_beside_pairs(write):
    trace = {"prompt_ids": [1], "canvas_ids": [5], "canvas_step_map": [1], "canvas_logprobs": [-1.0]}
    trace |= {"num_response_tokens": 1, "num_steps": 1, "reward": 1.0}
    (example,) = load_pairs(write("traces.json", [trace]))
    assert example.trace["reward"] == 1.0
    with pytest.raises(ValueError, match="1 rows are pairs and 1 responses of a model"):
        load_pairs(write("both.json", [TEXTS, trace]))


def test_responses_that_differ_in_white_space_at_their_ends_alone_are_no_pair(write):
    turns = {"chosen": [HI, YO], "rejected": [HI, YO | {"content": "yo\n"}]}
    rows = [TEXTS, TEXTS | {"rejected": "yo \n"}, turns, TEXTS | {"rejected": " yo"}]
    with pytest.warns(UserWarning, match="differs from 'chosen' in white space at its end alone"):
        assert len(load_pairs(write("pairs.json", rows))) == 2
