"""Expected values are computed from the arguments as they were.

`assert f(x) == sorted(x)` means x as the test made it, not as f left it: a program that empties x and returns nothing
would be right otherwise. In `k = remove(x, 3); assert x[:k] == [2]` the test wants to see what was done to x. So what a
call changed in its arguments is seen at once, but for the other side of the comparison that the call stands in.
"""

import ast
import builtins

HOLD, HELD, RELEASE = "__hold__", "__held__", "__release__"  # what the tests' side gives to the tests (inside/tests.py)


def with_holds(test: str, tree: ast.Module) -> str:
    """The test with calls around such comparisons, or, mostly, as it is."""
    if not any(isinstance(node, ast.Compare) and _is_held(node) for node in ast.walk(tree)):
        return test
    return ast.unparse(ast.fix_missing_locations(_Holding().visit(ast.parse(test))))


def _is_held(compare: ast.Compare) -> bool:
    parts = [compare.left, *compare.comparators]
    given = [_arguments(part) for part in parts]
    return any(
        given[first] & _names(later) for first in range(len(parts)) for later in parts[first + 1 :] if given[first]
    )


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _arguments(node: ast.AST) -> set[str]:
    """The variables in the arguments of the calls in an expression, those of builtin functions aside."""
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and not (isinstance(part.func, ast.Name) and hasattr(builtins, part.func.id)):
            found |= {name for value in (*part.args, *part.keywords) for name in _names(value)}
    return found


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


class _Holding(ast.NodeTransformer):
    """`a == b` becomes `__held__(__hold__(), a == b)`, in a statement that ends with `__release__()` in any case."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        return _call(HELD, _call(HOLD), node) if _is_held(node) else node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                setattr(node, name, [_released(statement) for statement in statements])
        return node


def _released(statement: ast.stmt) -> ast.stmt:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return statement
    if not any(isinstance(part, ast.Name) and part.id == HOLD for part in ast.walk(statement)):
        return statement
    return ast.Try([statement], [], [], [ast.Expr(_call(RELEASE))])
