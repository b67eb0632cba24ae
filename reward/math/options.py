"""Letters of options: A, (A), A., \\text{(A)}, (A) and what the option says."""

import re

from reward.math.spelling import tidy
from reward.math.words import unwrapped

_OPTION = re.compile(r"[(\[【<]?([A-Z])(?:[)\]】>]|[)\]]?[.:)])?(?:选?项)?")
_WITH_TEXT = re.compile(
    r"(?:[(\[](?P<bracketed>[A-Za-z])[)\]]|(?P<marked>[A-Za-z])(?:[).:\]]|\s+[-=]+>?(?=\s)|\s*-{2,}"
    r"|(?:,(?=\s*(?:[A-Z]?[a-z]{2}|[^\x00-\x7f]))|\s*\\Rightarrow)(?!.*(?<![A-Za-z])[A-Z](?![A-Za-z]))))\s*[-:.]?\s*(?P<rest>\S.*)",
    re.DOTALL,
)
_ANNOUNCED = re.compile(
    r"^(?:(?:so|thus|hence|therefore)?,?\s*(?:the\s+)?(?:final\s+|best\s+)?(?:correct\s+|right\s+)?"
    r"(?:answer|option|choice)\s*(?:is\b|are\b|:|=)?\s*)+|^(?:I\s+(?:choose|pick|select)|it(?:'s|\s+is))\s+|^(?:正确|所以|因此|故)*(?:答案|选项|选择|应选|选)(?:[是为选:]*)\s*",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(
    r"\s+(?:is|are)\s+(?:the\s+)?(?:correct|right|true)(?:\s+(?:answer|option|choice))?$", re.IGNORECASE
)
_BUT_NOT = re.compile(r"(?:,\s*|\s+)\(?(?:and\s+)?not\s+[(\[]?[A-Z][)\]]{0,2}$")
_LABELLED = re.compile(r"\\text\{\s*\(?([A-Z])[).:]+\s*\}\s*[A-Za-z0-9]+")  # \text{C. }B: C, whose text is B
_OF_OTHERS = re.compile(r"(?:both|neither|either|only|all|none|not)\b", re.IGNORECASE)  # D. Both (A) and (B)
_ANOTHER = re.compile(
    r"^(?:and|or|nor|not|but|&|,|;|/|\+|\\land|\\lor|和|或|与|、)(?![a-zA-Z])"  # A and B
    r"|[(\[][A-Z][)\]]"  # (A) 1 (B) 2
    r"|^[A-Z][.:)\]]?$"  # A. B
    r"|(?:^|\s)[B-Z][.:)]\s+\S"  # A. 1 B. 2
)


def option_letter(text: str) -> str | None:
    """The letter of an answer that is one option, else None. Two options are none. A small letter counts where it
    stands alone or has a mark."""
    if match := _LABELLED.fullmatch(tidy(text)):
        return match[1]
    text = _BUT_NOT.sub("", _CONCLUDED.sub("", _ANNOUNCED.sub("", unwrapped(text)).strip(" *!")))
    if match := _OPTION.fullmatch(text):
        return match[1]
    if match := re.fullmatch(r"[(\[]([a-z])[)\]]", text):
        return match[1].upper()
    match = _WITH_TEXT.fullmatch(text)
    if match is None or (_ANOTHER.search(match["rest"]) and not _OF_OTHERS.match(match["rest"])):
        return None
    letter = match["bracketed"] or match["marked"]
    return None if letter.islower() and re.match(r"[a-z](?:\s|,)", text) else letter.upper()


def chosen_option(text: str) -> str | None:
    """As `option_letter`, of an answer that can be nothing else than an option: a single small letter is one too."""
    alone = unwrapped(text)
    return alone.upper() if re.fullmatch(r"[a-z]", alone) else option_letter(text)


def letters(text: str) -> list[str]:
    """The letters of a list of options (A, C and E), else an empty list."""
    parts = [part.strip() for part in re.split(r",|;|\band\b|&|\\land\b", unwrapped(text)) if part.strip()]
    found = [match[1] for part in parts if (match := _OPTION.fullmatch(part))]
    return found if len(found) == len(parts) else []
