"""Each token id as something to look at."""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

Kind = Literal["text", "special", "bytes", "id"]


class TokenText(NamedTuple):
    """kind: "text" as it reads; "special" (names of a tokenizer's own); "bytes", a part of a character, in hex; "id"
    where there is no text."""

    text: str
    kind: Kind


def token_texts(tokenizer: PreTrainedTokenizerBase | None) -> Callable[[int], TokenText]:
    """id -> its text, alone and out of context. Without a tokenizer, and for ids that it does not have: the id."""
    if tokenizer is None:
        return lambda token_id: TokenText(str(token_id), "id")
    piece_of = {i: piece for piece, i in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    added = {i: str(token) for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    byte_of = {character: byte for byte, character in enumerate(_byte_letters())}

    def text_of(token_id: int) -> TokenText:
        piece = piece_of.get(token_id)
        if piece is None:
            return TokenText(str(token_id), "id")
        if token_id in special or token_id in added:
            return TokenText(added.get(token_id, piece), "special")
        text = str(tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if piece.startswith("▁") and not text.startswith(" "):
            text = f" {text}"
        if "\N{REPLACEMENT CHARACTER}" not in text:
            return TokenText(text, "text")
        sentencepiece_byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        if sentencepiece_byte:
            return TokenText(sentencepiece_byte[1].lower(), "bytes")
        if all(character in byte_of for character in piece):
            return TokenText(bytes(byte_of[character] for character in piece).hex(), "bytes")
        return TokenText(text, "text")

    return text_of


def _byte_letters() -> list[str]:
    """The printable character that stands for each byte 0 to 255 in a byte-level BPE vocabulary (GPT-2's: printable
    Latin-1 as it is, the others in order from U+0100 on)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
