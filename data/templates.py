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


_NO_CHAT = "template 'chat' is the chat template of the checkpoint's tokenizer, which has none here: use 'auto'"
_OF_A_QUESTION = ("family", "data_type", "template", "start_with_think", "in_box", "think_first")


DESCRIPTION = "description"
"""The template of what a model is to draw: the question alone, whose control tokens are text."""


@dataclass(frozen=True)
class Format:
    """How texts are written: for which family, and how a single question becomes a prompt (see `render_prompt`). Of mmu
    tasks in_box: the answer is asked for in a box; think_first: after a thought. system: the system prompt of what has
    none of its own. shots: (question, answer) turns before each question."""

    family: str
    data_type: str = "math"
    template: str = "auto"
    start_with_think: bool = False
    in_box: bool = True
    think_first: bool = False
    system: str | None = None
    shots: tuple[tuple[str, str], ...] = ()


class Writer:
    """Writes prompts of one format, guarded: control tokens in questions, turns and responses are text. Under
    the template "plain" the question is the whole prompt, and what it holds counts.

    tokenizer: of the checkpoint; None where there is none at hand. Then there is no chat template, and the control
    tokens are those of the family's chat.
    """

    def __init__(self, how: Format, tokenizer: Any = None):
        if (how.system is not None or how.shots) and how.template not in ("auto", "chat"):
            name = "dataset.system" if how.system is not None else "dataset.few_shot"
            raise ValueError(f"there is no place for {name} in it: use 'auto' or 'chat', whose prompts have turns")
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
        if task.turns:
            return self._chat(task)
        before = self._before(system, instruction(self._family, task, how) if how.shots else _PLAIN)
        if how.template != "plain":
            prefix = task.columns.get("prefix")
            columns = task.columns | {"prefix": guard(prefix)} if isinstance(prefix, str) else task.columns
            task = replace(task, question=self._guarded(task.question, task.images), columns=columns)
        return render_prompt(
            task,
            **{name: getattr(how, name) for name in _OF_A_QUESTION},
            chat=None if chat is None else lambda turn: chat([*before, ("user", turn)]),
            before=before,
        )

    @property
    def _family(self) -> ChatFormat:
        """ValueError where the family has no chat format."""
        return chat_family(self.how.family)

    def _before(self, system: str | None, asked: str) -> list[tuple[str, str]]:
        """The turns before a question, guarded. asked: the user's turn, with {{problem}} where a question goes."""
        system, guard = self.how.system if system is None else system, self.control.guard
        turns = [] if system is None else [("system", guard(system))]
        for question, answer in self.how.shots:
            turns.append(("user", insert_question(asked, guard(question))))
            turns.append(("assistant", self.control.guard_response(answer)))
        return turns

    def _chat(self, task: Task) -> str:
        """The prompt of a task that is a chat: its own turns, without an instruction, after those of the format."""
        how = self.how
        if how.template not in ("auto", "chat"):
            raise ValueError(f"task {task.id} is a chat, which has no place in it: use 'auto' or 'chat'")
        if how.template == "chat" and self.chat is None:
            raise ValueError(_NO_CHAT)
        own = task.turns[0][1] if task.turns[0][0] == "system" else None
        turns = task.turns[1:] if own is not None else task.turns
        text = self.conversation([*self._before(own, _PLAIN), *turns], task.images)
        return text + self.control.guard(_prefix(task, how.data_type))

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
        turns, is_raw = list(example.turns), not self.control.in_responses.search(example.prompt)
        if not turns and example.images and is_raw and self.own is not None:
            turns = [("user", example.prompt)]
        if not turns:
            return example.prompt, example.response
        if self.how.system is not None and turns[0][0] != "system":
            turns.insert(0, ("system", self.how.system))
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
    before: Sequence[tuple[str, str]] = (),
) -> str:
    """The prompt's text for one task. Pictures for which the question has no placeholders stand first in the user's
    turn.

    `template`: "auto" is the family's own for this type of task, "plain" the question as it is, "chat" the family's
    words in the checkpoint's own chat template, and a text that holds `{{problem}}` is used with the question in its
    place. `chat`: that chat template, from the user's turn to a conversation that the answer continues; None where the
    checkpoint has none. `before`: turns before the question's, for "auto". A function task's `prefix` (the code that
    the answer continues) ends the prompt, except under "plain".
    ValueError for an unknown family, data type or template, for "chat" without one, and for `start_with_think`
    where a family has no such prompt.
    """
    check_data_type(data_type)
    places = "" if PLACEHOLDER in task.question else f"{PLACEHOLDER}\n" * len(task.images)
    if template in ("plain", DESCRIPTION):
        return places + task.question
    prefix = _prefix(task, data_type)
    if _PLACEHOLDER.search(template):
        return insert_question(template, places + task.question) + prefix
    if template not in ("auto", "chat"):
        raise ValueError(
            f"unknown template {template!r}: use 'auto', 'plain', 'chat', or a text with {{{{problem}}}} for the "
            "question (of a file: @FILE)"
        )
    if template == "chat" and chat is None:
        raise ValueError(_NO_CHAT)
    if _is_function(task, data_type) and start_with_think:
        warnings.warn("start_with_think is ignored for function tasks: their prompt ends with code", stacklevel=2)
        start_with_think = False
    own = chat_family(family)
    how = Format(family, data_type, template, start_with_think, in_box, think_first)
    turn = places + insert_question(instruction(own, task, how), task.question)
    if template == "auto" or chat is None:
        return own.conversation([*before, ("user", turn)], start_with_think=start_with_think) + prefix
    text = chat(turn)
    return text + (_THINK if start_with_think and not text.endswith(_THINK) else "") + prefix


def _is_function(task: Task, data_type: str) -> bool:
    return data_type == "code" and task.columns.get("test_method") != "stdio"


def _prefix(task: Task, data_type: str) -> str:
    """The code that the answer to a function task continues."""
    return (task.columns.get("prefix") or "") if _is_function(task, data_type) else ""


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
