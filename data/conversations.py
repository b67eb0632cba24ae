"""Conversations: of SFT files, `messages` (role, content) or `conversations` (from, value), with a system prompt beside
them; of tasks whose question is a chat."""

from dataclasses import dataclass
from typing import Any

from data.faults import Fault, short
from data.readers import Record

CHAT_FIELDS = {"messages": ("role", "content"), "conversations": ("from", "value")}
SYSTEM_FIELDS = ("system", "system_prompt")
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Conversation:
    """turns: (role, content) of all before the response: user, assistant, system."""

    turns: tuple[tuple[str, str], ...]
    response: str


def chat_field(row: Record) -> str | None:
    """The field that holds the row's conversation; None where it has none."""
    return next((name for name in CHAT_FIELDS if name in row.values), None)


def conversation_of(row: Record, field: str) -> Conversation | Fault:
    """The conversation in `field`: its last turn, which must be the assistant's, is the response. A system prompt in a
    column of its own comes first, unless the conversation begins with one."""
    split = answered(row, field)
    if isinstance(split, Fault):
        return split
    messages, response = split
    if not any(role == "user" for role, _ in messages):
        return Fault(row.place, field, "has no turn of the user", blank=True)
    system = system_of(row)
    if isinstance(system, Fault):
        return system
    if system is not None and messages[0][0] != "system":
        messages.insert(0, ("system", system))
    return Conversation(tuple(messages), response)


def question_turns(row: Record) -> list[tuple[str, str]] | None | Fault:
    """The (role, content) turns of a task whose `question`, or `prompt` where it has none, is a list of objects (TRL's
    and verl's form); None where it is none."""
    field = "question" if "question" in row.values else "prompt"
    given = row.values.get(field)
    if not isinstance(given, list) or not any(isinstance(turn, dict) for turn in given):
        return None
    turns = turns_of(row, field)
    if isinstance(turns, Fault):
        return turns
    if turns[-1][0] != "user" or not turns[-1][1].strip():
        return Fault(row.place, field, "does not end with a turn of the user", blank=True)
    system = system_of(row)
    if isinstance(system, Fault):
        return system
    return [("system", system), *turns] if system is not None and turns[0][0] != "system" else turns


def unused_columns(row: Record, field: str) -> list[str]:
    """The columns beside the conversation in `field` that hold something and have no place in it."""
    used = {field} if _begins_with_system(row, field) else {field, *SYSTEM_FIELDS}
    return [name for name, value in row.values.items() if value not in (None, "", []) and name not in used]


def _begins_with_system(row: Record, field: str) -> bool:
    """Whether the conversation has a system prompt of its own, so that one beside it has no place."""
    messages = turns_of(row, field)
    return not isinstance(messages, Fault) and messages[0][0] == "system"


def system_of(row: Record) -> str | None | Fault:
    """The system prompt that a row has in a column of its own; None where that is absent or empty."""
    for field in SYSTEM_FIELDS:
        value = row.values.get(field)
        if value is not None and not isinstance(value, str):
            return Fault(row.place, field, f"is {short(value)}, expected text")
        if value and value.strip():
            return value
    return None


def answered(row: Record, field: str) -> tuple[list[tuple[str, str]], str] | Fault:
    """The turns of a conversation in `field` before its last one, and the last one's text: the assistant's response."""
    turns = turns_of(row, field)
    if isinstance(turns, Fault):
        return turns
    role, response = turns.pop()
    if role != "assistant" or not response.strip():
        return Fault(row.place, field, "does not end with a response of the assistant", blank=True)
    return turns, response


def turns_of(row: Record, field: str) -> list[tuple[str, str]] | Fault:
    """The (role, content) turns of a conversation in `field`."""
    turns = row.values[field]
    if turns is None or turns == []:
        return Fault(row.place, field, "has no turn", blank=True)
    if not isinstance(turns, list):
        return Fault(row.place, field, f"is {short(turns)}, expected a list of turns")
    named_from = isinstance(turns[0], dict) and "from" in turns[0] and "role" not in turns[0]
    role_name, text_name = CHAT_FIELDS.get(field) or CHAT_FIELDS["conversations" if named_from else "messages"]
    messages: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, 1):
        role = _role(turn, role_name)
        if role is None:
            return Fault(row.place, field, f"turn {number}: no {role_name} of {', '.join(_ROLES)} in {short(turn)}")
        if not isinstance(turn.get(text_name), str):
            return Fault(row.place, field, f"turn {number}: {text_name} is {short(turn.get(text_name))}, expected text")
        messages.append((role, turn[text_name]))
    return messages


def _role(turn: Any, name: str) -> str | None:
    return _ROLES.get(str(turn.get(name))) if isinstance(turn, dict) else None
