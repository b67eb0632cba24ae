"""Texts and chats as prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.control import encode
from data.templates import Format, Writer
from models import DiffusionLM

Chat = Sequence[Mapping[str, str]]


def token_ids(prompt: Any, model: DiffusionLM) -> Any:
    """Token ids of a text, as it stands (its control tokens count), or of a chat, [{"role": ..., "content": ...}, ...],
    in the family's format (those of its turns are text); anything else as it is. ValueError: no tokenizer, or a family
    without a chat format."""
    is_chat = isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Mapping)
    if not isinstance(prompt, str) and not is_chat:
        return prompt
    if model.tokenizer is None:
        raise ValueError("the model folder has no tokenizer: give prompts as token ids.")
    if isinstance(prompt, str):
        return encode(model.tokenizer, prompt)
    writer = Writer(Format(model.spec.family.name), model.tokenizer)
    return encode(model.tokenizer, writer.conversation([(turn["role"], turn["content"]) for turn in prompt]))
