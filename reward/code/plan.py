"""How function tests are split between the program and the tests, from the tests' text alone; nothing is run.

The program's functions that the tests call ("entries") become stand-ins. Every other name comes from the task's prefix,
from the tests themselves, or is a module of the standard library. Tests that look into objects of the program cannot be
split.
"""

import ast
import builtins
import importlib
import symtable
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from reward.code.source import FunctionNode, runnable_prefix

_STARRED = (
    *("bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "math"),
    *("operator", "random", "re", "statistics", "string", "typing"),
)
_PLAIN_ATTRIBUTES = {
    name
    for kind in (int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, deque)
    for name in dir(kind)
}


class Ungradable(ValueError):
    """The tests cannot be run apart from the program; the message says why."""


@dataclass(frozen=True)
class Plan:
    entries: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    prefix: str = ""


def plan_tests(tests: list[str], prefix: str = "") -> Plan:
    """Which names cross to the program. Ungradable where none does, or where more than plain data would have to."""
    try:
        return _plan(tests, prefix)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise Ungradable(f"the tests cannot be read: {error}") from None


def _plan(tests: list[str], prefix: str) -> Plan:
    trees = [_parse(test) for test in tests]
    runnable = runnable_prefix(prefix)
    if runnable is None:
        raise Ungradable("the prefix does not parse")
    known = ast.parse(runnable)
    bound = {name for tree in trees for name in _top_level_names(tree)}
    read = {name for test in tests for name in _global_reads(symtable.symtable(test, "<test>", "exec"))} - bound
    free = read - vars(builtins).keys() or {name for name in read if _is_called(name, trees)}
    entry = next((node.name for node in reversed(known.body) if isinstance(node, FunctionNode | ast.ClassDef)), None)
    entries = {name for name in free if name == entry or name not in _top_level_names(known)}
    modules = {name for name in entries if name in sys.stdlib_module_names and _only_dotted(name, trees)}
    entries -= modules
    if not entries:
        raise Ungradable("the tests call nothing of the program")
    for tree in trees:
        _check(tree, entries)
    return Plan(sorted(entries), sorted(modules), runnable)


def _parse(source: str) -> ast.Module:
    try:
        compile(source, "<test>", "exec", dont_inherit=True)
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise Ungradable(f"a test does not parse: {error}") from None


def _top_level_names(tree: ast.Module) -> set[str]:
    table = symtable.symtable(ast.unparse(tree), "<test>", "exec")
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*" and node.module in _STARRED:
            module = importlib.import_module(node.module)
            names |= set(getattr(module, "__all__", None) or (name for name in dir(module) if name[0] != "_"))
    return names


def _global_reads(table: symtable.SymbolTable) -> Iterator[str]:
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (top or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _global_reads(child)


def _is_called(name: str, trees: list[ast.Module]) -> bool:
    return any(_is_call(node, {name}) for tree in trees for node in ast.walk(tree))


def _only_dotted(name: str, trees: list[ast.Module]) -> bool:
    dotted = {id(node.value) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return all(
        id(node) in dotted
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == name
    )


def _check(tree: ast.Module, entries: set[str]) -> None:
    """Ungradable where a test does with an entry what a stand-in that returns plain data cannot serve."""
    names = entries | _aliases(tree, entries)
    expected_to_raise = {
        id(statement) for node in ast.walk(tree) if isinstance(node, ast.Try) for statement in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_entry(node.value, names):
            raise Ungradable(f"a test reads {ast.unparse(node)}")
        if isinstance(node, ast.Attribute) and _is_call(node.value, names) and node.attr not in _PLAIN_ATTRIBUTES:
            raise Ungradable(f"a test uses an object of the program: {ast.unparse(node)}")
        if isinstance(node, ast.Call) and _is_call(node.func, names):
            raise Ungradable(f"a test calls what the program returned: {ast.unparse(node)}")
        if isinstance(node, ast.Expr) and _is_call(node.value, names) and id(node) not in expected_to_raise:
            raise Ungradable(f"a test looks at what the program does to its arguments: {ast.unparse(node)}")
        if isinstance(node, ast.Call) and _is_entry(node.func, names):
            _check_arguments(node, names)


def _check_arguments(call: ast.Call, names: set[str]) -> None:
    assert isinstance(call.func, ast.Name)
    for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
        for node in ast.walk(argument):
            if isinstance(node, ast.Lambda) or _is_entry(node, names - {call.func.id}):
                raise Ungradable(f"a test passes more than plain data: {ast.unparse(call)}")


def _aliases(tree: ast.Module, entries: set[str]) -> set[str]:
    """Other names of the entries in a test: parameters of functions that get them, and variables."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, FunctionNode)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            parameters = functions[node.func.id].args.args
            names |= {
                parameter.arg
                for parameter, value in zip(parameters, node.args, strict=False)
                if _is_entry(value, entries)
            }
        if isinstance(node, ast.Assign) and _is_entry(node.value, entries):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _is_entry(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def _is_call(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Call) and _is_entry(node.func, names)
