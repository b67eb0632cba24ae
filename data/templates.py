"""Prompts: the format that a family's checkpoints were trained on, for each type of task.

The wording is that of dLLM-RL to the character, spaces included, since a checkpoint answers best in the format that it
was trained on. A question is inserted as text and never executed as a template.
"""

import re
import warnings
from collections.abc import Callable

from data.faults import check_data_type
from data.tasks import Task
from models.families import families
from models.families.base import ChatFormat

_PLACEHOLDER = re.compile(r"\{\{\s*problem\s*\}\}")
_PLAIN = "{{problem}}"
_THINK = "<think>\n"
_FUNCTION = (
    "{{problem}}\nPlace your code within a single Python code block ```python ```. "
    "Do not include more than one code block. "
)
_OPTION = (
    "This is the problem:\n{{problem}}\nYou need to think step by step and put the final option "
    "(A, B, C, or D only\N{EM DASH}no other character) in \\boxed{}. "
)


def render_prompt(
    task: Task,
    *,
    family: str,
    data_type: str,
    template: str = "auto",
    start_with_think: bool = False,
    chat: Callable[[str], str] | None = None,
) -> str:
    """The prompt's text for one task.

    `template`: "auto" is the family's own for this type of task, "plain" the question as it is, "chat" the family's
    instruction in the checkpoint's own chat template, and a text that holds `{{problem}}` is used with the question in
    its place. `chat`: that chat template, from the user's turn to a conversation that the response continues; None
    where the checkpoint has none. A function task's `prefix` (code that the response continues) ends the prompt, except
    under "plain". ValueError for an unknown family, data type or template, for "chat" without one, and for
    `start_with_think` where a family has no such prompt.
    """
    check_data_type(data_type)
    if template == "plain":
        return task.question
    is_function = data_type == "code" and task.columns.get("test_method") != "stdio"
    prefix = (task.columns.get("prefix") or "") if is_function else ""
    if _PLACEHOLDER.search(template):
        return insert_question(template, task.question) + prefix
    if template not in ("auto", "chat"):
        raise ValueError(
            f"unknown template {template!r}: use 'auto', 'plain', 'chat', or a text with {{{{problem}}}} for the "
            "question"
        )
    if template == "chat" and chat is None:
        raise ValueError(
            "template 'chat' is the chat template of the checkpoint's tokenizer, which has none here: use 'auto'"
        )
    if is_function and start_with_think:
        warnings.warn("start_with_think is ignored for function tasks: their prompt ends with code", stacklevel=2)
        start_with_think = False
    own = chat_family(family)
    turn = insert_question(instruction(own, task, data_type, start_with_think), task.question)
    if template == "auto" or chat is None:
        return own.conversation([("user", turn)], start_with_think=start_with_think) + prefix
    text = chat(turn)
    return text + (_THINK if start_with_think and not text.endswith(_THINK) else "") + prefix


def instruction(chat: ChatFormat, task: Task, data_type: str, start_with_think: bool = False) -> str:
    """The user's turn for this type of task, with `{{problem}}` in the question's place."""
    if data_type == "math":
        return chat.thinking_math if start_with_think else chat.math
    if data_type == "code":
        return chat.stdio if task.columns.get("test_method") == "stdio" else _FUNCTION
    return _OPTION if data_type == "option" else _PLAIN


def insert_question(template: str, question: str) -> str:
    """`template` with each `{{problem}}` replaced by the question, whose own braces mean nothing."""
    return _PLACEHOLDER.sub(lambda _: question, template)


def chat_family(name: str) -> ChatFormat:
    """The chat format by a family's name, in any case. ValueError for a name that has none."""
    chats = chat_formats()
    if name.lower() not in chats:
        known = ", ".join(sorted(chats))
        raise ValueError(f"no prompt format for family {name!r}: use one of {known}, or template 'plain'")
    return chats[name.lower()]


def chat_formats() -> dict[str, ChatFormat]:
    """Chat formats by every name and alias of a family that has one."""
    return {name: family.chat for name, family in families().items() if family.chat is not None}
