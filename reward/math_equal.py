"""Whether two mathematical answers are equal. Runs inside the workers of reward.math: sympy can take for ever."""

import logging

from math_verify import LatexExtractionConfig, parse, verify

for _name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_CONFIG = (LatexExtractionConfig(boxed_match_priority=0),)


def answers_equal(prediction: str, answer: str) -> bool:
    """math-verify's verdict on two answers without their boxes. No deadline of its own."""
    gold, given = (parse(f"\\boxed{{{text}}}", _CONFIG, parsing_timeout=None) for text in (answer, prediction))
    return verify(gold, given, timeout_seconds=None)
