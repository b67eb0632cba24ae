"""Control tokens inside data are text."""

import re

from hypothesis import given
from hypothesis import strategies as st

from data.control import CUT, ControlTokens, encode, spaced, uncut
from data.templates import chat_family
from models.families import FAMILIES

TOKENS = ["<a>", "<ab>", "<|x|>", "a><b", "<b>", "<think>"]
CONTROL = ControlTokens(re.compile("|".join(map(re.escape, TOKENS))), re.compile(r"<\|x\|>"))


def by_letter(texts, add_special_tokens):
    """A tokenizer: a control token is one id below 0, any other character its code point."""
    found = [re.split("(" + "|".join(map(re.escape, TOKENS)) + ")", text) for text in texts]
    ids = [[i for p in parts for i in ([-1 - TOKENS.index(p)] if p in TOKENS else map(ord, p))] for parts in found]
    return {"input_ids": ids}


@given(st.lists(st.sampled_from([*TOKENS, "<", "a", ">", "|", CUT, "b", "x"]), max_size=8).map("".join))
def test_a_guarded_text_has_no_control_token_and_every_character(text):
    guarded = CONTROL.guard(text)
    ids = encode(by_letter, guarded)
    assert all(i >= 0 for i in ids) and "".join(map(chr, ids)) == uncut(guarded) == text.replace(CUT, "")
    if not CONTROL.in_prompts.search(text):
        assert guarded == text.replace(CUT, "")


def test_an_answer_keeps_its_thought_and_its_end_of_turn():
    assert CONTROL.guard_response("<think>1<|x|>2<|x|>", "<|x|>") == f"<think>1<{CUT}|x|>2<|x|>"
    assert spaced(CONTROL.guard("<think>1")) == "< think>1"


def test_without_a_tokenizer_a_familys_own_tokens_are_known():
    for family in FAMILIES:
        if family.chat is None:
            continue
        control = ControlTokens.of_chat(family.chat)
        written = chat_family(family.name).conversation([("user", "hi")])
        assert control.in_prompts.search(written) and control.in_responses.search(written)
        assert control.guard_response("1" + family.end_of_turn) != "1" + family.end_of_turn
        for text in ("a < b > c", "[x]", "x |> f <| y", "<b>bold</b>"):
            assert control.guard(text) == text
