"""LaTeX in one spelling: commands with synonyms, arguments without braces, colours, spacing, text fonts and rows come
out in one form, which the rest of reward.math reads.

Every upright text is `\\text{...}`, plain inside. `\\frac`, `\\binom` and `\\sqrt` have their braces, functions round
brackets where they had braces. Rows of aligned equations follow each other with commas.
"""

import re
from collections.abc import Callable
from typing import TypeAlias

from reward.math.commands import (
    DROPPED,
    ESCAPES,
    FUNCTIONS,
    IN_TEXT,
    LAST_KEPT,
    ROWS,
    SYNONYMS,
    TEXT,
    TWO_ARGUMENTS,
    UNIT_PREFIXES,
    UNWRAPPED,
    UPRIGHT,
    WITHOUT_MEANING,
)

Node: TypeAlias = "str | list[Node]"  # a list is what stood in braces

_TOKEN = re.compile(r"\\[a-zA-Z]+\*?|\\[\s\S]|[{}]|[^\\{}]+")
_SPACES = re.compile(r"\s+")
_NUMBER = re.compile(r"[+-]?[\d.,]*\d[\d.,]*\s*%?")
_CONSTANTS = {"e": "e", "i": "i", "π": r"\pi "}
_ENDS_JOINED = re.compile(r"(.*\w)[\s,;]+(and|or)", re.DOTALL)
_JUNCTIONS = {"and": r" \land ", "or": r" \lor ", "&": r" \land "}


def one_spelling(text: str) -> str:
    """`text` with its commands in one spelling each; as it is where its braces do not balance."""
    nodes = _nodes(text)
    return text if nodes is None else _SPACES.sub(" ", _Writer(nodes).written()).strip()


def _nodes(text: str) -> list[Node] | None:
    levels: list[list[Node]] = [[]]
    for token in _TOKEN.findall(text):
        if token == "{":
            levels.append([])
        elif token == "}":
            if len(levels) == 1:
                return None
            group = levels.pop()
            levels[-1].append(group)
        else:
            levels[-1].append(token)
    return levels[0] if len(levels) == 1 else None


def _without_first(nodes: list[Node], mark: str) -> list[Node]:
    assert isinstance(nodes[0], str)
    return [nodes[0].lstrip().removeprefix(mark), *nodes[1:]]


class _Reader:
    """Reads the nodes of one group from left to right; `self.rest` holds those still to be read, reversed."""

    def __init__(self, nodes: list[Node]) -> None:
        self.rest = nodes[::-1]

    def next_starts_with(self, marks: str) -> bool:
        """Whether plain characters come next, the first one of `marks`."""
        if not self.rest or not isinstance(self.rest[-1], str):
            return False
        return bool(self.rest[-1].lstrip()) and self.rest[-1].lstrip()[0] in marks

    def argument(self, *, number: bool = False) -> list[Node]:
        """The argument that comes next: what stands in braces, a command with its own arguments, or one character
        (with `number` all digits of a number)."""
        while self.rest:
            node = self.rest.pop()
            if isinstance(node, list):
                return node
            if node.startswith("\\"):
                return [node, *self._arguments_of(node[1:])]
            text = node.lstrip()
            if text:
                match = re.match(r"\d+(?:\.\d+)?", text) if number else None
                size = match.end() if match else 1
                if text[size:]:
                    self.rest.append(text[size:])
                return [text[:size]]
        return []

    def _arguments_of(self, name: str) -> list[Node]:
        count = 2 if name in TWO_ARGUMENTS else 1 if name in TEXT or name in UNWRAPPED or name == "sqrt" else 0
        return [self.argument() for _ in range(count)]

    def bracketed(self, opening: str, closing: str) -> list[Node] | None:
        """What stands in these brackets, if they come next."""
        if not self.next_starts_with(opening):
            return None
        depth, held = 0, list[Node]()
        while self.rest:
            node = self.rest.pop()
            if isinstance(node, str) and not node.startswith("\\"):
                for index, character in enumerate(node):
                    depth += (character == opening) - (character == closing)
                    if depth == 0 and character == closing:
                        if node[index + 1 :]:
                            self.rest.append(node[index + 1 :])
                        held.append(node[:index])
                        return _without_first(held, opening)
            held.append(node)
        return _without_first(held, opening)


class _Writer(_Reader):
    """Writes the nodes of one group, command by command."""

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__(nodes)
        self.out: list[str] = []

    def written(self) -> str:
        while self.rest:
            node = self.rest.pop()
            if isinstance(node, list):
                self.out.append(self._braced(node))
            elif not node.startswith("\\"):
                self.out.append(node.replace("~", " "))
            elif node[1:] in ("over", "choose"):
                name = "frac" if node == r"\over" else "binom"
                return f"\\{name}{{{''.join(self.out).strip()}}}{{{_Writer(self.rest[::-1]).written().strip()}}}"
            else:
                self._command(node[1:])
        return "".join(self.out)

    def _braced(self, nodes: list[Node]) -> str:
        inner = _Writer(nodes).written()
        if self.out and re.search(
            r"[\^_]\s*$|\\[a-zA-Z]+\*?\s*$|\\[a-zA-Z]+\*?(?:\[[^\]]*\])?(?:\{[^{}]*\})+$", self.out[-1]
        ):
            return f"{{{inner}}}"
        return inner if re.fullmatch(r"\s*(?:[\d.,]+|[a-zA-Z]|,|\\[a-zA-Z]+\s*)?\s*", inner) else f"{{{inner}}}"

    def _command(self, name: str) -> None:
        simple = SYNONYMS.get(name, ESCAPES.get(name))
        if simple is not None:
            self._emit(simple)
        elif name in WITHOUT_MEANING:
            self._nothing(name)
        elif name in TEXT:
            self._text(name, self.argument())
        elif name in UPRIGHT:
            rest, self.rest = self.rest[::-1], []
            self._text(name, rest)
        elif name in FUNCTIONS:
            self._function(name)
        elif (writer := _WRITERS.get(name)) is not None:
            writer(self, name)
        else:
            self.out.append(f"\\{name}")

    def _emit(self, text: str) -> None:
        """`text`, apart from a command that it follows: `\\pi` and `i` are no `\\pii`."""
        if text[:1].isalpha() and self.out and re.search(r"\\[a-zA-Z]+$", self.out[-1]):
            self.out.append(" ")
        self.out.append(text)

    def _nothing(self, name: str) -> None:
        if name in ("left", "right", "middle") and self.rest and isinstance(self.rest[-1], str):
            self.rest[-1] = re.sub(r"^\s*\.", "", self.rest[-1])
        self._emit(" " if name in ("left", "right") else "")

    def _write_argument(self, *, number: bool = False) -> str:
        return _Writer(self.argument(number=number)).written().strip()

    def _text(self, name: str, nodes: list[Node]) -> None:
        plain = _plain_text(nodes)
        if plain is None:  # mathematics in an upright font
            self.out.append(_Writer(nodes).written())
            return
        said = plain.strip()
        if "$" in said and said.count("$") % 2 == 0:
            for index, part in enumerate(said.split("$")):
                self.out.append(one_spelling(part) if index % 2 else f"\\text{{{part}}}" if part.strip() else " ")
        elif said in _CONSTANTS:
            self._emit(_CONSTANTS[said])
        elif said in FUNCTIONS:
            self.rest.append(f"\\{said}")
        elif junction := _JUNCTIONS.get(said.strip(" ,;").lower()):
            self.out.append(junction)
        elif match := _ENDS_JOINED.fullmatch(said):
            self._text(name, [match[1]])
            self.out.append(_JUNCTIONS[match[2]])
        elif said[-1:] in (",", ";") and len(said) > 1:
            self._text(name, [said[:-1]])
            self.out.append(said[-1])
        elif not said:
            self.out.append(" ")
        elif _NUMBER.fullmatch(said):
            self._emit(plain.replace("%", r"\%"))
        elif name.startswith("operatorname") or said == "cis":
            self.out.append(f"\\operatorname{{{said}}}")
        else:
            self.out.append(f"\\text{{{plain}}}")

    def _function(self, name: str) -> None:
        """A function with its indices and powers; an argument in braces gets round brackets."""
        self.out.append(f"\\{name}")
        while self.next_starts_with("^_"):
            chunk = str(self.rest.pop()).lstrip()
            if chunk[1:]:
                self.rest.append(chunk[1:])
            self.out.append(f"{chunk[0]}{{{self._write_argument(number=True)}}}")
        if self.rest and isinstance(self.rest[-1], list):
            group = self.rest.pop()
            assert isinstance(group, list)
            self.out.append(f"({_Writer(group).written()})")
        else:
            self.out.append(" ")

    def _two(self, name: str) -> None:
        self.bracketed("[", "]")
        first, second = self._write_argument(), self._write_argument()
        self._emit(f"\\{TWO_ARGUMENTS[name]}{{{first}}}{{{second}}}")

    def _root(self, name: str) -> None:
        degree = self.bracketed("[", "]")
        inner = self.bracketed("(", ")")  # \sqrt(2) means the root of 2
        argument = self._write_argument(number=True) if inner is None else _Writer(inner).written().strip()
        written = _Writer(degree).written().strip() if degree else ""
        self.out.append(f"\\sqrt{f'[{written}]' if written else ''}{{{argument}}}")

    def _drop(self, name: str) -> None:
        self.bracketed("[", "]")
        self.argument()

    def _unwrap(self, name: str) -> None:
        self._emit(_Writer(self.argument()).written())

    def _keep_last(self, name: str) -> None:
        self.bracketed("[", "]")
        for _ in range(LAST_KEPT[name] - 1):
            self.argument()
        self._unwrap(name)

    def _measured(self, name: str) -> None:
        """siunitx: \\SI{5}{\\kilo\\metre\\per\\hour} as 5 kilometre per hour."""
        self.bracketed("[", "]")
        if name in ("SI", "qty"):
            self._emit(f"{self._write_argument()} ")
        said = [_unit_word(node) if isinstance(node, str) else _plain_text(node) or "" for node in self.argument()]
        self.out.append(f"\\text{{{''.join(said).strip()}}}")

    def _modulus(self, name: str) -> None:
        self.out.append(f"\\pmod{{{self._write_argument(number=True)}}}")

    def _not(self, name: str) -> None:
        following = self.rest.pop() if self.rest else ""
        if isinstance(following, str) and following.lstrip().startswith("="):
            self.out.append(r"\neq ")
            self.rest.append(following.lstrip()[1:])
        elif following == r"\in":
            self.out.append(r"\notin ")
        else:
            self.out.append(r"\not")
            self.rest.append(following)

    def _environment(self, name: str) -> None:
        kind = _plain_text(self.argument()) or ""
        depth, inner = 1, list[Node]()
        while self.rest:
            node = self.rest.pop()
            depth += (node == r"\begin") - (node == r"\end")
            if depth == 0:
                self.argument()
                break
            inner.append(node)
        before = "".join(self.out).rstrip()
        if kind == "array" and not before.endswith(("(", "[", "|")):  # no matrix: rows behind a brace or alone
            self.out = [before.removesuffix(r"\{")]
            self.out.append(_rows(inner[1:] if inner and isinstance(inner[0], list) else inner, pairs=True))
            return
        if kind in ROWS:
            self.out.append(_rows(inner, pairs="cases" in kind))
            return
        matrix = {"smallmatrix": "matrix", "Bmatrix": "pmatrix", "psmallmatrix": "pmatrix"}.get(kind, kind)
        columns = self._columns_of(inner) if kind == "array" else ""
        self.out.append(f"\\begin{{{matrix}}}{columns}{_Writer(inner).written()}\\end{{{matrix}}}")

    def _columns_of(self, inner: list[Node]) -> str:
        group = inner.pop(0) if inner and isinstance(inner[0], list) else "c"
        return f"{{{_plain_text([group]) or 'c'}}}"

    def _close(self, name: str) -> None:
        self.argument()


_WRITERS: dict[str, Callable[[_Writer, str], None]] = {
    "sqrt": _Writer._root,
    "begin": _Writer._environment,
    "end": _Writer._close,
    "not": _Writer._not,
    **dict.fromkeys(("pmod", "bmod", "mod", "pod"), _Writer._modulus),
    **dict.fromkeys(("SI", "si", "qty", "unit"), _Writer._measured),
    **dict.fromkeys(TWO_ARGUMENTS, _Writer._two),
    **dict.fromkeys(UNWRAPPED, _Writer._unwrap),
    **dict.fromkeys(DROPPED, _Writer._drop),
    **dict.fromkeys(LAST_KEPT, _Writer._keep_last),
}


def _unit_word(node: str) -> str:
    """A macro of siunitx as the word that it is; a prefix stays at its unit."""
    return node if not node.startswith("\\") else node[1:] if node[1:] in UNIT_PREFIXES else f"{node[1:]} "


def _plain_text(nodes: list[Node]) -> str | None:
    """What nodes say as plain text; None where a command in them belongs to mathematics."""
    pieces: list[str] = []
    nodes = nodes[::-1]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            inner = _plain_text(node)
            if inner is None:
                return None
            pieces.append(inner)
        elif not node.startswith("\\"):
            pieces.append(node.replace("~", " "))
        elif node[1:] in TEXT or node[1:] in UNWRAPPED:
            continue
        elif (meant := IN_TEXT.get(node[1:])) is not None:
            pieces.append(meant)
        else:
            return None
    return "".join(pieces)


def _rows(inner: list[Node], *, pairs: bool) -> str:
    """Rows of aligned equations as a list. With `pairs` two cells (a value and its condition) are a pair."""
    rows: list[list[list[Node]]] = [[[]]]
    for node in inner:
        if node == r"\\":
            rows.append([[]])
        elif isinstance(node, str) and "&" in node and not node.startswith("\\"):
            first, *others = node.split("&")
            rows[-1][-1].append(first)
            rows[-1].extend([other] for other in others)
        else:
            rows[-1][-1].append(node)
    written = []
    for cells in rows:
        texts = [text.strip(" ,;") for cell in cells if (text := _Writer(cell).written()).strip(" ,;")]
        together = not pairs or len(texts) != 2 or re.match(r"[=<>]|\\(?:le|ge|neq|approx|equiv)\b", texts[1])
        if texts:
            written.append(" ".join(texts) if together else f"({texts[0]}, {texts[1]})")
    return ", ".join(written)
