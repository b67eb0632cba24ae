"""The built-in task of addition: two numbers of six digits in base 4, whose carries run from the right to the left.

A question is `::221131+112111=`, its answer `0333302`: seven digits, the most significant first. Prompt and answer are
16 and 8 tokens, so that a block of 4, 8 or 16 begins with the answer. The files are split by the two numbers: none
adds a pair that another file adds, in either order.

The numbers of tiny_addition_sft have one to six digits, all lengths alike, with zeros in front. With numbers of six
digits alone some seeds never find the rule: a digit of the sum is uniform given either of its digits, so nothing is
learnt before both are seen together. Zeros make copying a digit the first thing to learn. In its answers one digit in
four is drawn at random: SFT on them learns the rule and doubts every digit, and the reward has to teach the rest.

This file imports nothing of the project, so `reward.function: data/tiny_addition.py:addition_reward` loads from its
path alone.
"""

import random
from typing import Any

BASE, WIDTH = 4, 6
DRAWN_DIGITS = 0.25
"""Share of the digits of tiny_addition_sft's answers that are drawn at random, one in four of them right."""
SIZES = {"tiny_addition_test": 256, "tiny_addition_sft": 3000, "tiny_addition_train": 6000}


def addition_reward(
    prompts: list[str], completions: list[str], *, ground_truth_answer: list[str | None], **columns: Any
) -> list[float | None]:
    """1.0 for each completion whose text before the first `<eos>` is exactly the sum, else 0.0; None (left out) without
    an answer."""
    return [
        None if answer is None else float(completion.split("<eos>", 1)[0] == answer)
        for completion, answer in zip(completions, ground_truth_answer, strict=True)
    ]


def addition_rows(seed: int) -> dict[str, list[dict[str, str]]]:
    """The rows of each file by its name."""
    draw = random.Random(f"tiny-addition-{seed}")
    seen: set[tuple[int, int]] = set()
    rows: dict[str, list[dict[str, str]]] = {}
    for name, size in SIZES.items():
        rows[name] = []
        while len(rows[name]) < size:
            a, b = (_number(draw, any_length=name == "tiny_addition_sft") for _ in range(2))
            if (min(a, b), max(a, b)) in seen:
                continue
            seen.add((min(a, b), max(a, b)))
            question, answer = f"::{digits_of(a, WIDTH)}+{digits_of(b, WIDTH)}=", digits_of(a + b, WIDTH + 1)
            if name == "tiny_addition_sft":
                rows[name].append({"prompt": question, "response": _with_drawn_digits(answer, draw)})
            else:
                rows[name].append({"question": question, "ground_truth_answer": answer})
    return rows


def _number(draw: random.Random, *, any_length: bool) -> int:
    """A number below BASE ** WIDTH, or below a power of BASE that is drawn first."""
    return draw.randrange(BASE ** (draw.randint(1, WIDTH) if any_length else WIDTH))


def _with_drawn_digits(answer: str, draw: random.Random) -> str:
    return "".join(str(draw.randrange(BASE)) if draw.random() < DRAWN_DIGITS else digit for digit in answer)


def digits_of(number: int, width: int) -> str:
    """The number in base 4, with zeros in front."""
    digits = []
    for _ in range(width):
        number, digit = divmod(number, BASE)
        digits.append(str(digit))
    return "".join(reversed(digits))
