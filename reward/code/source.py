"""Python source as data: what a text parses to, and a prefix that ends in the middle of a function."""

import ast

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_ENDINGS = ("", "\n    pass\n", "\n        pass\n")


def parsed(source: str) -> ast.Module | None:
    """The tree of a source, or None where it does not parse. Nothing is run."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def runnable_prefix(prefix: str) -> str | None:
    """The prefix as source that runs: a function that ends right after its head gets a body. None where it does not
    parse."""
    return next((prefix + ending for ending in _ENDINGS if parsed(prefix + ending) is not None), None)


def entry_node(prefix: str) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
    """What a prefix leaves to be written: its last function or class."""
    tree = parsed(runnable_prefix(prefix) or "")
    kinds = FunctionNode | ast.ClassDef
    return next((node for node in reversed(tree.body) if isinstance(node, kinds)), None) if tree else None
