"""Answers taken out of completions."""

import re

_GROUP = r"\{[^{}\n]*(?:\{[^{}\n]*\}[^{}\n]*){0,9}\}"
_WITHOUT_BRACES = "|".join(
    (
        r"[-+]?(?:\\?\$)?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?:\s?\\?%)?",
        r"[-+]?\\[dt]?frac\s*\d\d",
        rf"[-+]?\\(?!boxed|fbox)[a-zA-Z]+(?:\[\w+\])?(?:\s*{_GROUP}){{0,2}}(?!\s*\{{)",  # a command with its arguments
        r"[A-Za-z](?![A-Za-z])",
        r"\([^()\n]{1,80}\)",
    )
)
_ANNOUNCES = re.compile(r"\b(?:answer|result|verdict|prediction)\s*(?:is\b|are\b|:|=)[\s:*]*", re.IGNORECASE)
_BOX = r"\\{1,2}(?:boxed|fbox)(?![a-zA-Z])\s*"
_BRACES = re.compile(rf"(?P<box>{_BOX}\{{)|{_BOX}(?P<bare>{_WITHOUT_BRACES})|\\[\s\S]|[{{}}]")


def extract_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} (or \\fbox{...}) whose braces balance, stripped; None when there is none.

    Escaped braces (\\{ and \\}) do not count. Without braces (\\boxed 5) it is the number, letter or command with its
    arguments that comes next. One pass, whatever the text.
    """
    opened: list[int | None] = []  # where the content of each open box starts; None for a brace of any other kind
    start, end = -1, -1
    for token in _BRACES.finditer(text):
        if token.group() == "}":
            box = opened.pop() if opened else None
            if box is not None and box > start:
                start, end = box, token.start()
        elif token.group("box"):
            opened.append(token.end())
        elif token.group("bare"):
            if token.start("bare") > start:
                start, end = token.span("bare")
        elif token.group() == "{":
            opened.append(None)
    return None if start < 0 else text[start:end].strip()


def stated_answer(completion: str, in_box: bool) -> str | None:
    """What a completion gives as its answer: the content of its last box; without a box nothing where it must be
    `in_box`, else what it says behind its last "answer is" (result, verdict, prediction), or all of it after a thought
    (</think>)."""
    boxed = extract_boxed(completion)
    if boxed is not None or in_box:
        return boxed
    said = completion.rpartition("</think>")[2]
    ends = [match.end() for match in _ANNOUNCES.finditer(said)]
    return (said[ends[-1] :].partition("\n")[0] if ends else said).strip() or None
