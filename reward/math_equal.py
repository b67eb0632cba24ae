"""Whether two mathematical answers are equal. Runs inside the workers of reward.math: sympy can take for ever."""

import logging
import re

from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.relational import Relational

from reward.math_text import base_of, letters, option_letter, tidy, unit_of, words

for _name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_CONFIG = (LatexExtractionConfig(boxed_match_priority=0),)


def answers_equal(prediction: str, answer: str) -> bool:
    """The verdict on two answers without their boxes. No deadline of its own.

    What is text (words, options, units, number bases) is compared as text, the rest by math-verify.
    """
    verdict = text_verdict(prediction, answer)
    return parsed_equal(prediction, answer) if verdict is None else verdict


def parsed_equal(prediction: str, answer: str) -> bool:
    """math-verify's verdict alone; intervals and inequalities may stand for each other.

    An equation between constants (0.56 = 56%) means its last side: as equations, all of them would be equal.
    """
    gold, given = (parse(f"\\boxed{{{tidy(text)}}}", _CONFIG, parsing_timeout=None) for text in (answer, prediction))
    if any(isinstance(item, Relational) and not item.free_symbols for item in (*gold, *given)):
        last_sides = prediction.rpartition("=")[2], answer.rpartition("=")[2]
        if last_sides != (prediction, answer):
            return parsed_equal(*last_sides)
    return verify(gold, given, allow_set_relation_comp=True, timeout_seconds=None)


def text_verdict(prediction: str, answer: str) -> bool | None:
    """The verdict where reading both as text settles it, else None."""
    given, true = tidy(prediction), tidy(answer)
    if not given:
        return not true
    if re.sub(r"\s+", "", given) == re.sub(r"\s+", "", true):
        return True
    if (option := option_letter(answer)) and (chosen := option_letter(prediction)):
        return chosen == option
    if len(many := letters(answer)) > 1 and (listed := letters(prediction)):
        return set(listed) == set(many)
    if (said := words(prediction)) and (meant := words(answer)):
        if said.text == meant.text:
            return True
        if said.marked or meant.marked:
            return False
    for part in (unit_of, base_of):
        if (mine := part(given)) and (theirs := part(true)) and mine != theirs:
            return False
    return None
