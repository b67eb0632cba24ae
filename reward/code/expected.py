"""Expected values are computed from the arguments as they were.

`assert f(x) == sorted(x)` means x as the test made it, not as f left it: a program that empties x and returns nothing
would be right otherwise. In `k = remove(x, 3); assert x[:k] == [2]` the test looks at what was done to x. So what a
call changes in its arguments is seen at once, but for what a result of the program is compared with. A call that
stands alone is there for what it changes.
"""

import ast
import builtins
from typing import Any

from reward.code.uses import Uses

ORIGINAL = "__original__"  # of the tests' side (inside/tests.py): an object as it was before the program changed it
ACCEPT = "__accept__"  # of the tests' side: what the program changed until now, the test wanted changed
_COMPARING = ("assert", "isclose", "allclose", "array_equal")


def with_originals(tests: list[str], uses: Uses) -> list[str]:
    """The tests with such values computed from originals; those without any as they are."""
    given = _given(uses)
    found = [_Expected(tree, uses, given) for tree in uses.trees]
    return [
        ast.unparse(expected.visit(ast.parse(test))) if expected.names else test
        for test, expected in zip(tests, found, strict=True)
    ]


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _given(uses: Uses) -> set[str]:
    """The variables that are passed to the program, or share their value with such a one."""
    given: set[str] = set()
    for node in uses.nodes:
        if isinstance(node, ast.Call) and uses.mentions(node.func):
            given |= {name for value in (*node.args, *node.keywords) for name in _names(value)}
    pairs = [
        (target.id, node.value.id)
        for node in uses.nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    size = -1
    while size != (size := len(given)):
        given |= {name for pair in pairs if given & set(pair) for name in pair}
    return given - vars(builtins).keys()


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


class _Expected(ast.NodeTransformer):
    """names: the variables that expected values of a test are computed from, and that the program was given."""

    def __init__(self, tree: ast.Module, uses: Uses, given: set[str]) -> None:
        self.uses = uses
        self._marked: dict[int, ast.AST] = {}
        nodes = list(ast.walk(tree))
        self.names = {name for node in nodes for part in self._expected(node) for name in _names(part)}
        assigned = [node for node in nodes if isinstance(node, ast.Assign) and not uses.mentions(node.value)]
        size = -1
        while size != (size := len(self.names)):
            for node in assigned:
                if any(isinstance(target, ast.Name) and target.id in self.names for target in node.targets):
                    self.names |= _names(node.value)
        self.assigned = {name for name in self.names if name not in given}
        self.names &= given

    def _expected(self, node: ast.AST) -> list[ast.expr]:
        """The parts of a comparison that do not come from the program, where others do."""
        if isinstance(node, ast.Compare):
            if any(isinstance(sign, ast.Is | ast.IsNot) for sign in node.ops):
                return []
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and any(word in _called(node) for word in _COMPARING):
            parts = node.args
        else:
            return []
        expected = [part for part in parts if not self.uses.mentions(part)]
        return expected if len(expected) < len(parts) else []

    def visit(self, node: ast.AST) -> Any:
        for part in self._expected(node):
            self._mark(part)
        if isinstance(node, ast.Assign) and not self.uses.mentions(node.value) and self._assigns(node):
            self._mark(node.value)
        self.generic_visit(node)
        if isinstance(node, ast.Expr) and self.uses.mentions(node.value):
            return [node, ast.Expr(ast.Call(ast.Name(ACCEPT, ast.Load()), [], []))]
        if isinstance(node, ast.Name) and id(node) in self._marked:
            return ast.Call(ast.Name(ORIGINAL, ast.Load()), [node], [])
        return node

    def _assigns(self, node: ast.Assign) -> bool:
        return any(isinstance(target, ast.Name) and target.id in self.assigned for target in node.targets)

    def _mark(self, expression: ast.AST) -> None:
        self._marked |= {
            id(part): part for part in ast.walk(expression) if isinstance(part, ast.Name) and part.id in self.names
        }
