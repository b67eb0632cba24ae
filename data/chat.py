"""The chat template of a checkpoint's tokenizer, which is a program that somebody else wrote."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

INSTEAD = "use template 'auto', the family's own, or correct the chat template"


def chat_of(tokenizer: Any) -> Callable[[Sequence[tuple[str, str]]], str] | None:
    """The tokenizer's chat template, from (role, content) turns to a conversation that the answer continues; None
    where it has none. transformers runs it in a sandbox, and the turns are values in it.

    What is returned raises ValueError where the template fails, or leaves a turn of the user out."""
    return functools.partial(_conversation, tokenizer) if tokenizer.chat_template else None


def _conversation(tokenizer: Any, turns: Sequence[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever a foreign template raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"the tokenizer's chat template fails ({reason}): {INSTEAD}") from None
    missing = next((content for role, content in turns if role == "user" and _dense(content) not in _dense(text)), None)
    if missing is not None:
        shown = " ".join(missing.split())[:60]
        raise ValueError(f"the tokenizer's chat template leaves the user's turn out ({shown!r}): {INSTEAD}")
    return text


def _dense(text: str) -> str:
    return "".join(text.split())
