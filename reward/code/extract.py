"""The program in a completion: a Python block of it, or what continues the task's prefix."""

import ast
import re
from collections.abc import Collection

from reward.code.source import FunctionNode, entry_node, parsed, runnable_prefix

MAX_CHECKS = 8  # blocks of one completion that are parsed to find where they end
_UNSEEN = "\u200b\ufeff"  # zero-width space, byte order mark
_OPENER = re.compile(
    r"((?<!`)`{3,}|(?<!~)~{3,})"
    rf"[ \t{_UNSEEN}]*\{{?\.?(?:python|py)[\d.]*(?:[ \t,:{{}}{_UNSEEN}][^\n`]*)?\r?\n[{_UNSEEN}]*",
    re.IGNORECASE,
)
_FENCE_LINE = re.compile(rf"^[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]*)?(`{{3,}}|~{{3,}})([^\n`]*)\n[{_UNSEEN}]*", re.MULTILINE)
_QUOTED = re.compile(r"(?:^[ \t]*>[^\n]*(?:\n|\Z))+", re.MULTILINE)
_QUOTED_FENCE = re.compile(r"^[ \t]*>[ \t]*(?:```|~~~)", re.MULTILINE)
_QUOTE_SIGN = re.compile(r"^[ \t]*> ?", re.MULTILINE)
_DEFINED = re.compile(r"^(?:(?:async[ \t]+)?def[ \t]+|class[ \t]+)(\w+)|^(\w+)[ \t]*(?::[^=\n]+)?=(?!=)", re.MULTILINE)
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""|'
    r"'''(?:\\.|[^\\])*?'''|"
    r'"(?:\\.|[^"\\\n])*"|'
    r"'(?:\\.|[^'\\\n])*'|"
    r"^[ \t]*\#[^\n]*|(?P<fence>`{3,}|~{3,})",
    re.DOTALL | re.MULTILINE,
)
_FUTURE = re.compile(r"^from __future__ import [^\n]*\n?", re.MULTILINE)


def extract_code(completion: str, prefix: str = "", needed: Collection[str] = ()) -> str | None:
    """The program in a completion: its last ```python block that defines a name of `needed`, else the last, with the
    imports and helpers of `prefix` before it; where there is none, the block without a language; or, where the prompt
    ended with `prefix` and there is no block, what continues it.

    None when there is no code. needed: what the tests use of the program. A block may stand in a quote; one that is
    not closed runs to the end; a fence inside a string of the program closes nothing; the indentation of an indented
    block is taken off.
    """
    completion = _QUOTED.sub(_without_quote, completion)
    blocks = _blocks(completion) or _bare_blocks(completion, prefix)
    if not blocks and prefix and runnable_prefix(prefix) is None:
        blocks, prefix = _blocks(prefix + completion), ""  # the prefix opens the block
    if blocks:
        block = next((block for block in reversed(blocks) if _defined(block) & set(needed)), blocks[-1])
        return _joined(prefix, block) if block.strip() else None
    if not prefix:
        return None
    text = prefix + completion
    end = _end_of_code(text, 0, "```", len(prefix))
    return text[:end]


def prefix_code(prefix: str) -> str:
    """A prefix without what stands before the block that it opens."""
    blocks = _blocks(prefix) if runnable_prefix(prefix) is None else []
    return blocks[-1] if blocks else prefix


def _blocks(text: str) -> list[str]:
    """The contents of all ```python blocks, in order."""
    blocks: list[str] = []
    position = 0
    while opener := _OPENER.search(text, position):
        careful = len(blocks) < MAX_CHECKS
        end = _end_of_code(text, opener.end(), opener[1], opener.end(), careful)
        position = max(end, opener.end())
        line = text[text.rfind("\n", 0, opener.start()) + 1 : opener.start()]
        block = text[opener.end() : end].lstrip("\r\n").rstrip()
        blocks.append(_without_indent(block, len(line)) if not line.strip() else block)
    return blocks


def _bare_blocks(text: str, prefix: str) -> list[str]:
    """The contents of the blocks that name no language. Where a completion may continue `prefix` without a block, a
    lone fence ends it: there a block has to define the entry."""
    entry = entry_node(prefix) if prefix else None
    blocks: list[str] = []
    position = checks = 0
    while opener := _FENCE_LINE.search(text, position):
        end = _end_of_code(text, opener.end(), opener[1], opener.end(), checks < MAX_CHECKS)
        checks += 1
        position = max(end + len(opener[1]), opener.end())
        block = _without_indent(text[opener.end() : end].strip("\r\n").rstrip())
        names_language = opener[2].strip(_UNSEEN + " \t\r") != ""
        if not names_language and (not prefix or (entry is not None and entry.name in _defined(block))):
            blocks.append(block)
    return blocks


def _defined(block: str) -> set[str]:
    """The names that the lines of a block without indentation define; the block need not parse."""
    return {found[1] or found[2] for found in _DEFINED.finditer(block)}


def _without_quote(lines: re.Match[str]) -> str:
    """Quoted lines without the signs of the quote, where a fence is among them."""
    return _QUOTE_SIGN.sub("", lines[0]) if _QUOTED_FENCE.search(lines[0]) else lines[0]


def _end_of_code(text: str, start: int, fence: str, earliest: int, careful: bool = True) -> int:
    """Where the fence that closes the code from `start` begins, or the end of the text.

    The first one outside strings; where that one does not leave a program that parses, the first one after `earliest`.
    """
    plain = text.find(fence, earliest)
    plain = len(text) if plain < 0 else plain
    if not careful:
        return plain
    outside = next(
        (token.start() for token in _TOKEN.finditer(text, start) if (token["fence"] or "").startswith(fence)), len(text)
    )
    outside = max(outside, earliest)
    if outside == plain or parsed(_without_indent(text[start:outside])) is not None:
        return outside
    return plain


def _joined(prefix: str, block: str) -> str:
    """The block after what the prefix holds besides the function to write; after the whole prefix where the block is
    only that function's body."""
    entry = entry_node(prefix)
    body = _without_indent(block)
    tree = parsed(body)
    if entry is not None and tree is not None and entry.name not in {getattr(node, "name", None) for node in tree.body}:
        if body != block and parsed(prefix + block) is not None:
            return prefix + block
        if any(isinstance(node, ast.Return) for node in _outside_functions(tree)):
            return prefix.rstrip() + "\n" + re.sub(r"^(?=[^\n])", " " * _body_column(entry), body, flags=re.MULTILINE)
    head = prefix if entry is None else _before(prefix, entry)
    if not head.strip() or f"\n{head.strip()}\n" in f"\n{body}":
        return body
    future = "".join(_FUTURE.findall(body))
    head = head if head.endswith("\n") else head + "\n"
    return future + head + (_FUTURE.sub("", body) if future else body)


def _before(prefix: str, entry: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    first = min([entry.lineno, *(decorator.lineno for decorator in entry.decorator_list)])
    return "".join(line + "\n" for line in prefix.split("\n")[: first - 1])


def _body_column(entry: ast.AST) -> int:
    """Where the statements of the innermost function that a prefix leaves open begin."""
    node, column = entry, 0
    while isinstance(node, FunctionNode | ast.ClassDef):
        node, column = node.body[-1], node.col_offset + 4
    return column


def _outside_functions(tree: ast.AST) -> list[ast.AST]:
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, FunctionNode | ast.ClassDef):
            found += [node, *_outside_functions(node)]
    return found


def _without_indent(block: str, width: int | None = None) -> str:
    """Takes `width` columns of white space, or as many as the first line of code has, off every line."""
    if width is None:
        first = next((line for line in block.splitlines() if line.strip()), "")
        width = len(first) - len(first.lstrip())
    return re.sub(rf"^[ \t]{{1,{width}}}", "", block, flags=re.MULTILINE) if width else block
