"""Prompts: what a family's checkpoints were trained to be asked, for each type of task.

The wording is that of dLLM-RL to the character, spaces included: a checkpoint answers best what it was trained on.
A question is put into its place as text and never executed as a template.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.faults import check_data_type
from data.tasks import Task

_PLACEHOLDER = re.compile(r"\{\{\s*problem\s*\}\}")
_PLAIN = "{{problem}}"
_THINK = "<think>\n"
_BOXED = "You need to put your final answer in \\boxed{}. This is the problem:\n{{problem}}"
_STEP_BY_STEP = "{{problem}}\nPlease reason step by step, and put your final answer within \\boxed{}."
_FUNCTION = (
    "{{problem}}\nPlace your code within a single Python code block ```python ```. "
    "Do not include more than one code block. "
)
_STDIO = (
    "This is the problem:\n{{problem}}\nYou should put your code in ```python ```. "
    "Use input() to read input and print() to produce output in your script. "
)
_OPTION = (
    "This is the problem:\n{{problem}}\nYou need to think step by step and put the final option "
    "(A, B, C, or D only\N{EM DASH}no other character) in \\boxed{}. "
)


@dataclass(frozen=True)
class Family:
    """How a family writes a conversation, and its words where they are its own."""

    turn: str
    answer: str
    end_of_turn: str
    system: str | None = None
    thinking_answer: str | None = None
    math: str = _BOXED
    thinking_math: str = _BOXED
    stdio: str = _STDIO

    def conversation(self, messages: Sequence[tuple[str, str]], *, start_with_think: bool = False) -> str:
        """(role, content) pairs and the assistant's open header; the family's system turn first if none is given."""
        if self.system is not None and (not messages or messages[0][0] != "system"):
            messages = [("system", self.system), *messages]
        text = "".join(self._written(role, content) for role, content in messages)
        if not start_with_think:
            return text + self.answer
        if self.thinking_answer is None:
            raise ValueError(
                "start_with_think is true, but this family has no prompt that opens a thought: "
                "set rollout.start_with_think=false or give a template of your own"
            )
        return text + self.thinking_answer

    def _written(self, role: str, content: str) -> str:
        closing = self.turn.rpartition("%s")[2]
        return self.answer + content + closing if role == "assistant" else self.turn % (role, content)


_SDAR = Family(
    turn="<|im_start|>%s\n%s<|im_end|>\n",
    answer="<|im_start|>assistant\n",
    thinking_answer="<|im_start|>assistant<think>\n",
    end_of_turn="<|im_end|>",
    math=_STEP_BY_STEP,
)
_DREAM = Family(
    turn=_SDAR.turn, answer=_SDAR.answer, end_of_turn=_SDAR.end_of_turn, system="You are a helpful assistant."
)
_LLADA = Family(
    turn="<|startoftext|><|start_header_id|>%s<|end_header_id|>%s<|eot_id|>",
    answer="<|startoftext|><|start_header_id|>assistant<|end_header_id|>\n",
    end_of_turn="<|eot_id|>",
    stdio=_STDIO.replace("\nYou", "\n You"),
)
FAMILIES = {
    "sdar": _SDAR,
    "sdar_moe": _SDAR,
    "trado": _SDAR,
    "dream": _DREAM,
    "diffucoder": _DREAM,
    "llada": _LLADA,
    "mmada": _LLADA,
}


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
    words in the checkpoint's own chat template, and a text that holds `{{problem}}` is used with the question in its
    place. `chat`: that chat template, from the user's turn to a conversation that the answer continues; None where the
    checkpoint has none. A function task's `prefix` (the code that the answer continues) ends the prompt, except under
    "plain".
    Raises ValueError for an unknown family, data type or template, for "chat" without one, and for `start_with_think`
    where a family has no such prompt.
    """
    check_data_type(data_type)
    if template == "plain":
        return task.question
    is_function = data_type == "code" and task.columns.get("test_method") != "stdio"
    prefix = (task.columns.get("prefix") or "") if is_function else ""
    if _PLACEHOLDER.search(template):
        return fill(template, task.question) + prefix
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
    turn = fill(instruction(own, task, data_type, start_with_think), task.question)
    if template == "auto" or chat is None:
        return own.conversation([("user", turn)], start_with_think=start_with_think) + prefix
    text = chat(turn)
    return text + (_THINK if start_with_think and not text.endswith(_THINK) else "") + prefix


def instruction(chat: Family, task: Task, data_type: str, start_with_think: bool = False) -> str:
    """The user's turn for this type of task, with `{{problem}}` where the question goes."""
    if data_type == "math":
        return chat.thinking_math if start_with_think else chat.math
    if data_type == "code":
        return chat.stdio if task.columns.get("test_method") == "stdio" else _FUNCTION
    return _OPTION if data_type == "option" else _PLAIN


def fill(template: str, question: str) -> str:
    """`template` with each `{{problem}}` replaced by the question, whose own braces mean nothing."""
    return _PLACEHOLDER.sub(lambda _: question, template)


def chat_family(name: str) -> Family:
    """The chat format by a family's name, in any case. Raises ValueError for a name that has none."""
    chat = FAMILIES.get(name.lower())
    if chat is None:
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"no prompt format for family {name!r}: use one of {known}, or template 'plain'")
    return chat
