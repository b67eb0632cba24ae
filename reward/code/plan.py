"""How function tests are split between the program and the tests, from the tests' text alone; nothing is run.

The names that the tests take from the program ("entries") become handles on its objects. Every other name comes from
the task's prefix, from the tests themselves, or is a module of the standard library.
"""

import ast
import builtins
import importlib
import symtable
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from reward.code.expected import with_originals
from reward.code.extract import prefix_code
from reward.code.source import FunctionNode, entry_node, last_definition, runnable_prefix
from reward.code.ungradable import Ungradable
from reward.code.uses import Uses, check_surroundings

_STARRED = (
    *("bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "itertools", "math"),
    *("operator", "random", "re", "statistics", "string", "typing"),
)


@dataclass(frozen=True)
class Plan:
    """entries: names of the program. makers: those of them whose results are objects, not data (BY_USE or BY_NAME).
    modules: what the tests use unimported. classes: what the prefix or the tests define, so that both sides may have
    it. numpy: the tests take arrays for arrays, not for lists. seeds: they set a random seed. preparation: the tests
    that assert nothing. mutates: they change containers in place. tests: as they are run."""

    entries: list[str] = field(default_factory=list)
    makers: dict[str, int] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    preparation: list[int] = field(default_factory=list)
    numpy: bool = False
    seeds: bool = False
    mutates: bool = False
    prefix: str = ""
    tests: list[str] = field(default_factory=list)

    def job(self, program: str) -> dict[str, Any]:
        """What the tests' side is told."""
        return {"program": program, **asdict(self)}


def plan_tests(tests: list[str], prefix: str = "") -> Plan:
    """What crosses to the program. Ungradable where nothing does, or where the tests need more than can."""
    try:
        return _plan(tests, prefix)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise Ungradable(f"the tests cannot be read: {error}") from None


def _plan(tests: list[str], prefix: str) -> Plan:
    trees = [_parse(test) for test in tests]
    prefix = prefix_code(prefix)
    runnable = runnable_prefix(prefix)
    if runnable is None:
        raise Ungradable("the prefix does not parse")
    known = ast.parse(runnable)
    bound = {name for tree in trees for name in _top_level_names(tree)}
    read = {name for test in tests for name in _global_reads(symtable.symtable(test, "<test>", "exec"))} - bound
    free = read - vars(builtins).keys() or {name for name in read if _is_called(name, trees)}
    given, entry = _top_level_names(known), entry_node(prefix)
    if entry is None and not free - given:
        entry = last_definition(known)
    entries = free - given | (free & {entry.name} if entry else set())
    modules = {name for name in entries if name in sys.stdlib_module_names and _only_dotted(name, trees)}
    entries -= modules
    if not entries:
        raise Ungradable("the tests call nothing of the program")
    classes = {entry.name} & entries if isinstance(entry, ast.ClassDef) else set()
    uses = Uses(trees, entries, classes)
    uses.check()
    check_surroundings(trees)
    return Plan(
        entries=sorted(entries),
        makers=uses.makers(),
        modules=sorted(modules),
        classes=sorted(_classes(known, *trees) - entries),
        preparation=uses.preparation({node.name for node in known.body if isinstance(node, FunctionNode)}),
        numpy=uses.takes_arrays(),
        seeds=any("seed" in test for test in tests),
        mutates=uses.mutates(),
        prefix=runnable,
        tests=with_originals(tests, uses),
    )


def _classes(*trees: ast.Module) -> set[str]:
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


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
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for tree in trees
        for node in ast.walk(tree)
    )


def _only_dotted(name: str, trees: list[ast.Module]) -> bool:
    dotted = {id(node.value) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return all(
        id(node) in dotted
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == name
    )
