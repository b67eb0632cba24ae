"""Unicode mathematics in LaTeX's spelling: x² and x^{2}, √2 and \\sqrt{2}, ½, ≤, full-width and bold letters."""

import re
import unicodedata

_SYMBOLS = {
    "−‐‑‒–—―﹣－": "-",
    "×✕✖⨯": r"\times ",
    "·⋅∙•・": r"\cdot ",
    "÷": r"\div ",
    "∕⁄": "/",
    "∗＊": "*",
    "∶︰": ":",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≤≦⩽≲": r"\le ",
    "≥≧⩾≳": r"\ge ",
    "≠": r"\neq ",
    "≈≅≃≒": r"\approx ",
    "≡": r"\equiv ",
    "∼～〜": r"\sim ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "⊂⊆": r"\subseteq ",
    "∅⌀": r"\emptyset ",
    "∞": r"\infty ",
    "∨": r"\lor ",
    "∧": r"\land ",
    "∣❘": r"\mid ",
    "⇒⟹→⟶": r"\Rightarrow ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "ⅈ": "i",
    "ⅇ": "e",
    "⟨〈": r"\langle ",
    "⟩〉": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "‖": r"\|",
    "°˚º": r"^\circ ",
    "‰": r"\text{ per mille}",
    "℃": r"^\circ\text{C}",
    "℉": r"^\circ\text{F}",
    "㎡": r"\text{ m^2}",
    "㎠": r"\text{ cm^2}",
    "㎢": r"\text{ km^2}",
    "㎥": r"\text{ m^3}",
    "㎤": r"\text{ cm^3}",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "∫": r"\int ",
    "…⋯": r"\ldots ",
    "′’‘＇": "'",
    "″“”＂": '"',
    "。": ".",
    "、": ",",
    "\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}\N{WORD JOINER}\ufeff\N{SOFT HYPHEN}": "",
    "\N{INVISIBLE TIMES}": r"\cdot ",
    "\N{FUNCTION APPLICATION}\N{INVISIBLE SEPARATOR}": "",
}
_GREEK = (  # from α on; omicron has no command
    *(
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
    ),
    *("", "pi", "rho", "varsigma", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
)
_CAPITALS = {"Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi",
             "Ψ": "Psi", "Ω": "Omega"}  # fmt: skip
_TABLE: dict[int, str] = {ord(mark): latex for marks, latex in _SYMBOLS.items() for mark in marks}
_TABLE |= {ord("α") + n: f"\\{name} " for n, name in enumerate(_GREEK) if name}
_TABLE |= {ord(mark): f"\\{name} " for mark, name in _CAPITALS.items()}

_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸᵏᵐ", "0123456789+-=()nixykm")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₖₓₐₑₘᵢⱼ", "0123456789+-=()nkxaemij")
_HIGH = re.compile(f"[{''.join(map(chr, _RAISED))}]+")
_LOW = re.compile(f"[{''.join(map(chr, _LOWERED))}]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_ROOT = re.compile(r"([√∛∜])\s*(\d+(?:\.\d+)?|\\[a-zA-Z]+|[^\W\d_]|\(|\{)?")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_OVERLINED = re.compile("((?:\\d\N{COMBINING OVERLINE})+)|(\\d)\N{COMBINING DOT ABOVE}")


def in_latex(text: str) -> str:
    """`text` with every mathematical character in LaTeX, and letters and digits of any width or script in ASCII."""
    if text.isascii():
        return text
    text = _OVERLINED.sub(_overlined, unicodedata.normalize("NFC", text))
    text = _VULGAR.sub(_vulgar, text)
    text = _LOW.sub(lambda run: f"_{{{run[0].translate(_LOWERED)}}}", text)
    text = _HIGH.sub(lambda run: f"^{{{run[0].translate(_RAISED)}}}", text)
    text = text.translate(_TABLE)
    while match := _ROOT.search(text):
        text = _rooted(text, match)
    return "".join(map(_plain, unicodedata.normalize("NFKC", text)))


def _plain(character: str) -> str:
    """A digit of any script as an ASCII digit; a space of any width as a space."""
    if character.isascii():
        return character
    value = unicodedata.decimal(character, None)
    if value is not None:
        return str(value)
    return " " if character.isspace() else character


def _overlined(match: re.Match[str]) -> str:
    digits = match[1].replace("\N{COMBINING OVERLINE}", "") if match[1] else match[2]
    return rf"\overline{{{digits}}}" if match[1] else rf"\dot{{{digits}}}"


def _vulgar(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _rooted(text: str, match: re.Match[str]) -> str:
    """One root sign with its argument: a number, a letter, a command or what stands in brackets."""
    command, argument, end = _ROOTS[match[1]], match[2] or "", match.end()
    if argument in ("(", "{"):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += (text[end] in "({") - (text[end] in ")}")
            end += 1
        argument = text[match.end() : end - 1]
    return f"{text[: match.start()]}{command}{{{argument}}}{text[end:]}"
