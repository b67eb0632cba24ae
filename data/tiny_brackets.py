"""The built-in task of brackets, for full attention: fill the gaps so that every bracket is closed by its own kind.

A question is `.(..].[.....=`: twelve places, four of them given. Every balanced sequence that keeps those is right, and
most questions have many, so what is written at one place decides what fits at another: it matters what is unmasked
together, and in which order. Examples show one right sequence each, drawn at random. No question occurs twice.

This file imports nothing of the project, so `reward.function: data/tiny_brackets.py:brackets_reward` loads from its
path alone.
"""

import random
from typing import Any

PLACES, GIVEN = 12, 4
OPENS, CLOSES = "([", ")]"
SIZES = {"tiny_brackets_test": 256, "tiny_brackets_sft": 300, "tiny_brackets_train": 6000}


def brackets_reward(prompts: list[str], completions: list[str], *, question: list[str], **columns: Any) -> list[float]:
    """1.0 for each completion whose text before the first `<eos>` is balanced and keeps what its question gives."""
    return [
        float(fits(asked, text := completion.split("<eos>", 1)[0]) and is_balanced(text))
        for asked, completion in zip(question, completions, strict=True)
    ]


def fits(question: str, text: str) -> bool:
    """Whether `text` fills the gaps of `question` and changes nothing else."""
    places = question.removesuffix("=")
    return len(text) == len(places) and all(
        char in OPENS + CLOSES and given in (".", char) for given, char in zip(places, text, strict=True)
    )


def is_balanced(text: str) -> bool:
    """Whether every bracket of `text` is closed by its own kind."""
    waiting: list[int] = []
    for char in text:
        if char in OPENS:
            waiting.append(OPENS.index(char))
        elif not waiting or waiting.pop() != CLOSES.index(char):
            return False
    return not waiting


def brackets_rows(seed: int) -> dict[str, list[dict[str, str]]]:
    """The rows of each file by its name."""
    draw = random.Random(f"tiny-brackets-{seed}")
    seen: set[str] = set()
    rows: dict[str, list[dict[str, str]]] = {}
    for name, size in SIZES.items():
        rows[name] = []
        while len(rows[name]) < size:
            answer, given = balanced(draw), set(draw.sample(range(PLACES), GIVEN))
            question = "".join(char if place in given else "." for place, char in enumerate(answer)) + "="
            if question in seen:
                continue
            seen.add(question)
            of_sft = {"prompt": question, "response": answer}
            rows[name].append(of_sft if name == "tiny_brackets_sft" else {"question": question})
    return rows


def balanced(draw: random.Random) -> str:
    """A balanced sequence: at each place a bracket is opened or closed by the toss of a coin, where both can be."""
    chars: list[str] = []
    waiting: list[int] = []
    for left in range(PLACES, 0, -1):
        if not waiting or (len(waiting) < left and draw.random() < 0.5):
            waiting.append(draw.randrange(len(OPENS)))
            chars.append(OPENS[waiting[-1]])
        else:
            chars.append(CLOSES[waiting.pop()])
    return "".join(chars)
