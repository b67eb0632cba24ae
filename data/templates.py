"""Prompts: the format that a family's checkpoints were trained on, for each type of task.

The wording is that of dLLM-RL to the character, spaces included, since a checkpoint answers best in the format that it
was trained on. A question is inserted as text and never executed as a template; `data.control` keeps its control tokens
text.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.chat import chat_of
from data.control import ControlTokens
from data.faults import check_data_type
from data.tasks import Example, Task
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


@dataclass(frozen=True)
class Format:
    """How texts are written: for which family, and how a single question becomes a prompt (see `render_prompt`)."""

    family: str
    data_type: str = "math"
    template: str = "auto"
    start_with_think: bool = False


class Writer:
    """Writes prompts of one format, guarded: control tokens in questions, turns and responses are text. Under
    the template "plain" the question is the whole prompt, and what it holds counts.

    tokenizer: of the checkpoint; None where there is none at hand. Then there is no chat template, and the control
    tokens are those of the family's chat.
    """

    def __init__(self, how: Format, tokenizer: Any = None):
        self.how = how
        self.own = chat_formats().get(how.family.lower())
        self.chat = chat_of(tokenizer) if tokenizer is not None and how.template == "chat" else None
        self.control = (
            ControlTokens.of_tokenizer(tokenizer) if tokenizer is not None else ControlTokens.of_chat(self.own)
        )

    def prompt(self, task: Task, system: str | None = None) -> str:
        """The prompt of a task, after a system prompt if there is one (the templates "auto" and "chat" have a place for
        it). ValueError as of `render_prompt`."""
        how, chat, guard = self.how, self.chat, self.control.guard
        first = [] if system is None else [("system", guard(system))]
        if how.template != "plain":
            prefix = task.columns.get("prefix")
            columns = task.columns | {"prefix": guard(prefix)} if isinstance(prefix, str) else task.columns
            task = replace(task, question=guard(task.question), columns=columns)
        return render_prompt(
            task,
            family=how.family,
            data_type=how.data_type,
            template=how.template,
            start_with_think=how.start_with_think,
            chat=None if chat is None else lambda turn: chat([*first, ("user", turn)]),
            system=None if system is None else guard(system),
        )

    def conversation(self, turns: Sequence[tuple[str, str]]) -> str:
        """A conversation that the answer continues: in the tokenizer's chat template under the template "chat", else as
        the family writes it. ValueError for a family without a chat format."""
        turns = [(role, self.control.guard_turn(role, content)) for role, content in turns]
        if self.chat is None:
            return chat_family(self.how.family).conversation(turns, start_with_think=self.how.start_with_think)
        text = self.chat(turns)
        return text + (_THINK if self.how.start_with_think and not text.endswith(_THINK) else "")

    def example(self, example: Example) -> tuple[str, str]:
        """Prompt and response of an SFT example. Those of a pair are as they stand: what they hold counts."""
        if not example.turns:
            return example.prompt, example.response
        end = None if self.own is None else self.own.end_of_turn
        return self.conversation(example.turns), self.control.guard_response(example.response.rstrip(), end)


def render_prompt(
    task: Task,
    *,
    family: str,
    data_type: str,
    template: str = "auto",
    start_with_think: bool = False,
    chat: Callable[[str], str] | None = None,
    system: str | None = None,
) -> str:
    """The prompt's text for one task.

    `template`: "auto" is the family's own for this type of task, "plain" the question as it is, "chat" the family's
    words in the checkpoint's own chat template, and a text that holds `{{problem}}` is used with the question in its
    place. `chat`: that chat template, from the user's turn to a conversation that the answer continues; None where the
    checkpoint has none. `system`: a system prompt in place of the family's, for "auto". A function task's `prefix` (the
    code that the answer continues) ends the prompt, except under "plain".
    ValueError for an unknown family, data type or template, for "chat" without one, and for `start_with_think`
    where a family has no such prompt.
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
        first = [] if system is None else [("system", system)]
        return own.conversation([*first, ("user", turn)], start_with_think=start_with_think) + prefix
    text = chat(turn)
    return text + (_THINK if start_with_think and not text.endswith(_THINK) else "") + prefix


def instruction(chat: ChatFormat, task: Task, data_type: str, start_with_think: bool = False) -> str:
    """The user's turn for this type of task, with `{{problem}}` where the question goes."""
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
