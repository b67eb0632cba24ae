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
    """The function or class that a prefix leaves to be written: its last one, if that has no body of its own."""
    tree = parsed(runnable_prefix(prefix) or "")
    last = last_definition(tree) if tree else None
    node: ast.AST | None = last
    while isinstance(node, FunctionNode | ast.ClassDef):
        if all(isinstance(part, ast.Pass) or _is_constant(part) for part in node.body):
            return last
        node = node.body[-1]
    return None


def last_definition(tree: ast.Module) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
    return next((node for node in reversed(tree.body) if isinstance(node, FunctionNode | ast.ClassDef)), None)


def _is_constant(node: ast.AST) -> bool:
    """A docstring, or `...`."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
