"""Every answer of five public data sets in other spellings, which must grade as right, and changed, which must not."""

import json
import random
import re
from pathlib import Path

import pytest

from reward.math import MathGrader

DATA = Path(__file__).resolve().parents[3] / "shared" / "real" / "data"
SETS = ("AIME2024", "GSM8K", "GSM8K_train", "MATH500", "MATH_train")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}"),
]
RIGHT = 0.999  # share of spellings that grade as right; 29,372 of all answers gave 0.9998


def true_answers():
    rows = [row for name in SETS for row in json.loads((DATA / f"{name}.json").read_text())]
    return sorted({answer.strip() for row in rows if (answer := row["ground_truth_answer"]) and answer.strip()})


def around(answer):
    """The answer inside something else."""
    yield from (f"${answer}$", rf"\( {answer} \)", f"{answer}.", rf"\, {answer} \ ", rf"\displaystyle {answer}")
    yield from (f"{{{answer}}}", rf"\text{{Answer: }}{answer}", rf"\text{{the answer is }} {answer}")
    if not re.search(r"[=<>,]|\\l|\\g|text|in\b|\\pm", answer):
        yield f"x = {answer}"


def respelled(answer):
    """The answer with other commands or characters."""
    yield answer.replace(r"\frac", r"\dfrac")
    yield answer.replace(r"\frac", r"\tfrac")
    yield answer.replace(r"\left", "").replace(r"\right", "")
    yield answer.replace("-", "−")
    yield re.sub(r"\\pi(?![a-zA-Z])", "π", answer)
    yield re.sub(r"(?<!\\) +(?![a-zA-Z])", "", answer)
    if r"\left" not in answer and r"\sqrt[" not in answer:
        yield re.sub(r"([)\]])", r"\\right\1", re.sub(r"([(\[])", r"\\left\1", answer))
    if r"\text{" in answer:
        yield from (answer.replace(r"\text{", r"\mathrm{"), re.sub(r"\\text\{([^{}]*)\}", r"\1", answer))
    if answer.startswith(r"\sqrt{"):
        yield answer.replace(r"\sqrt", "√", 1)
    if match := re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", answer):
        sign, top, bottom = match[1], int(match[2]), int(match[3])
        yield from (f"{sign}{top}/{bottom}", rf"\frac{{{sign}{top}}}{{{bottom}}}", f"{sign}{top / bottom:.10f}")
        yield rf"{sign}\frac{{{2 * top}}}{{{2 * bottom}}}"
    if re.fullmatch(r"-?\d+", answer):
        number = int(answer)
        yield from (f"{number:,}", f"{number:,}".replace(",", "{,}"), f"{number:,}".replace(",", r"\,"), f"{answer}.0")
        yield from (
            rf"\frac{{{2 * number}}}{{2}}",
            rf"\${answer}",
            rf"{answer} \text{{ units}}",
            rf"\textbf{{{answer}}}",
        )
        yield "".join(chr(ord(character) + 0xFEE0) for character in answer)


def changed(answer):
    """Answers that are not this one."""
    numbers = list(re.finditer(r"\d+", answer))
    for match in {numbers[0], numbers[-1]} if numbers else ():
        yield f"{answer[: match.start()]}{int(match[0]) + 1}{answer[match.end() :]}"
    if re.fullmatch(r"[\d./\\{}a-z ]*[1-9][\d./\\{}a-z ]*", answer):
        yield f"-{answer}"
    if "," in answer and not re.search(r"\d,\\?!?\d{3}|text", answer):
        yield answer.rpartition(",")[0]
    yield re.sub(r"(?<![a-zA-Z\\])x(?![a-zA-Z])", "z", answer)
    yield re.sub(r"\\sqrt\{(\d+)\}", r"\1", answer)
    yield re.sub(
        r"\\text\{(\s*)(?:cm|miles|hours|feet|inches|meters|dollars|m|days|minutes|cents)\b", r"\\text{\1kg", answer
    )
    yield answer.replace("[", "(") if "[" in answer else answer.replace("]", ")")
    yield answer.replace("-", "", 1) if re.search(r"-[1-9]", answer) else answer


def graded(pairs):
    grader = MathGrader(workers=2)
    verdicts = grader.grade([(f"\\boxed{{{given}}}", true) for given, true in pairs])
    grader.close()
    return [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict]


def test_other_spellings_are_right():
    rng = random.Random(0)
    pairs = []
    for answer in true_answers():
        others = [*around(answer), *respelled(answer)]
        pairs += [(given, answer) for given in rng.sample(others, 2)]
    right = graded(pairs)
    assert len(pairs) > 6000 and len(right) >= RIGHT * len(pairs), sorted(set(pairs) - set(right))


# What these changes leave equal.
STILL_EQUAL = {("1.56 = 56\\%", "0.56 = 56\\%"), ("\\$\\dfrac23 \\approx \\$0.68", "\\$\\dfrac23 \\approx \\$0.67")}


def test_changed_answers_are_wrong():
    rng = random.Random(0)
    pairs = []
    for answer in true_answers():
        others = [given for given in changed(answer) if given != answer]
        if others and rng.random() < 0.6:
            pairs.append((rng.choice(others), answer))
    assert len(pairs) > 1800
    assert set(graded(pairs)) - STILL_EQUAL == set()
