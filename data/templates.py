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
from models.vision.images import PLACEHOLDER

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


_THINK_FIRST = (
    "You should first think about the reasoning process in the mind and then provide the user with the answer. The "
    "reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> answer "
    "here\n{{problem}}"
)


DESCRIPTION = "description"
"""The template of what a model is to draw: the question alone, whose control tokens are text."""


@dataclass(frozen=True)
class Format:
    """How texts are written: for which family, and how a single question becomes a prompt (see `render_prompt`). Of mmu
    tasks in_box: the answer is asked for in a box; think_first: after a thought."""

    family: str
    data_type: str = "math"
    template: str = "auto"
    start_with_think: bool = False
    in_box: bool = True
    think_first: bool = False


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
            task = replace(task, question=self._guarded(task.question, task.images), columns=columns)
        return render_prompt(
            task,
            **vars(how),
            chat=None if chat is None else lambda turn: chat([*first, ("user", turn)]),
            system=None if system is None else guard(system),
        )

    def _guarded(self, text: str, images: Sequence[object]) -> str:
        """A question or a user's turn, guarded but for the placeholders of its pictures."""
        pieces = text.split(PLACEHOLDER) if images else [text]
        return PLACEHOLDER.join(map(self.control.guard, pieces))

    def conversation(self, turns: Sequence[tuple[str, str]], images: Sequence[object] = ()) -> str:
        """A conversation that the answer continues: in the tokenizer's chat template under the template "chat", else as
        the family writes it. ValueError for a family without a chat format."""
        turns = [
            (role, self._guarded(content, images) if role == "user" else self.control.guard_turn(role, content))
            for role, content in turns
        ]
        if self.chat is None:
            return chat_family(self.how.family).conversation(turns, start_with_think=self.how.start_with_think)
        text = self.chat(turns)
        return text + (_THINK if self.how.start_with_think and not text.endswith(_THINK) else "")

    def example(self, example: Example) -> tuple[str, str]:
        """Prompt and response of an SFT example. Those of a pair are as they stand: what they hold counts; but a prompt
        with pictures that holds no control token is one turn of the user, as dLLM-RL's files have it."""
        turns, is_raw = example.turns, not self.control.in_responses.search(example.prompt)
        if not turns and example.images and is_raw and self.own is not None:
            turns = (("user", example.prompt),)
        if not turns:
            return example.prompt, example.response
        end = None if self.own is None else self.own.end_of_turn
        response = self.control.guard_response(example.response.rstrip(), end)
        return self.conversation(turns, example.images), response


def render_prompt(
    task: Task,
    *,
    family: str,
    data_type: str,
    template: str = "auto",
    start_with_think: bool = False,
    in_box: bool = True,
    think_first: bool = False,
    chat: Callable[[str], str] | None = None,
    system: str | None = None,
) -> str:
    """The prompt's text for one task. Pictures for which the question has no placeholders stand first in the user's
    turn.

    `template`: "auto" is the family's own for this type of task, "plain" the question as it is, "chat" the family's
    words in the checkpoint's own chat template, and a text that holds `{{problem}}` is used with the question in its
    place. `chat`: that chat template, from the user's turn to a conversation that the answer continues; None where the
    checkpoint has none. `system`: a system prompt in place of the family's, for "auto". A function task's `prefix` (the
    code that the answer continues) ends the prompt, except under "plain".
    ValueError for an unknown family, data type or template, for "chat" without one, and for `start_with_think`
    where a family has no such prompt.
    """
    check_data_type(data_type)
    places = "" if PLACEHOLDER in task.question else f"{PLACEHOLDER}\n" * len(task.images)
    if template in ("plain", DESCRIPTION):
        return places + task.question
    is_function = data_type == "code" and task.columns.get("test_method") != "stdio"
    prefix = (task.columns.get("prefix") or "") if is_function else ""
    if _PLACEHOLDER.search(template):
        return insert_question(template, places + task.question) + prefix
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
    how = Format(family, data_type, template, start_with_think, in_box, think_first)
    turn = places + insert_question(instruction(own, task, how), task.question)
    if template == "auto" or chat is None:
        first = [] if system is None else [("system", system)]
        return own.conversation([*first, ("user", turn)], start_with_think=start_with_think) + prefix
    text = chat(turn)
    return text + (_THINK if start_with_think and not text.endswith(_THINK) else "") + prefix


def instruction(chat: ChatFormat, task: Task, how: Format) -> str:
    """The user's turn for this type of task, with `{{problem}}` where the question goes. A caption has none."""
    if how.data_type == "math":
        return chat.thinking_math if how.start_with_think else chat.math
    if how.data_type == "code":
        return chat.stdio if task.columns.get("test_method") == "stdio" else _FUNCTION
    if how.data_type == "option":
        return _OPTION
    if how.data_type != "mmu" or task.columns.get("is_caption"):
        return _PLAIN
    if how.think_first:
        return _THINK_FIRST
    return chat.math if how.in_box else _PLAIN


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
