"""Answers taken out of completions."""

import re

_BRACES = re.compile(r"(?P<box>\\{1,2}(?:boxed|fbox)\s*\{)|\\[\s\S]|[{}]")


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
