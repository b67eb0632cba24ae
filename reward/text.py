"""Answers taken out of completions."""

import re

_BRACES = re.compile(r"(?P<box>\\{1,2}(?:boxed|fbox)\s*\{)|\\[\s\S]|[{}]")


_FENCED_PYTHON = re.compile(r"```(?:python3?|py)[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def extract_code(completion: str, prefix: str = "") -> str | None:
    """The program in a completion: its last ```python block, or, where the prompt ended with `prefix`, what continues
    it.

    None when there is no code. A block that is not closed runs to the end.
    """
    text = prefix + completion
    if blocks := _FENCED_PYTHON.findall(text):
        return blocks[-1].strip("\r\n") or None
    return text.partition("```")[0] if prefix else None


def extract_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} (or \\fbox{...}) whose braces balance, stripped; None when there is none.

    Escaped braces (\\{ and \\}) do not count. One pass, whatever the text.
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
        elif token.group() == "{":
            opened.append(None)
    return None if start < 0 else text[start:end].strip()
