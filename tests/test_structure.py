"""The shape of the code: imports run one way, and nothing grows too large to read. Counts come from the syntax tree."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("benchmarks", "configs", "data", "examples", "models", "reward", "runtime", "sample", "serve", "train")

# What a folder may import besides itself. Entry scripts, benchmarks and examples may import anything.
BELOW = {
    "configs": (),
    "runtime": ("configs",),
    "models": ("configs", "runtime.files", "runtime.lazy", "runtime.pictures", "runtime.pipes"),
    "reward": ("configs", "runtime"),
    "data": (
        *("configs", "models.families", "models.tokenizer", "models.vision.images"),
        *("runtime.files", "runtime.pipes", "runtime.text"),
    ),
    "sample": ("configs", "runtime", "models", "data.control", "data.templates"),
    "train": ("configs", "runtime", "models", "reward", "data", "sample"),
    "serve": ("configs", "runtime", "models", "reward", "data", "sample"),
}
# Inside train/, from the ground up; files of train/ itself (the loops) are on top.
TRAIN_FLOORS = ("algorithm", "distributed", "learner", "setup", "memory")

FUNCTION_LINES, CLASS_LINES, FILE_LINES, COMPLEXITY = 60, 200, 400, 3.95

# What is too large or in a circle today. An entry that no longer applies fails: take it out.
TO_DO: set[str] = set()


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything outside tests/."""
    paths = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    found = {}
    for path in sorted(path for path in paths if not path.is_symlink()):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Modules that a module names in an import, inside functions and under TYPE_CHECKING too."""
    named: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            named |= {full if full in modules() else node.module for full in inner.values()}
    return frozenset(named & set(modules()) - {module})


def folder_of(module: str) -> str:
    return module.split(".")[0]


def may_import(module: str, other: str) -> bool:
    folder = folder_of(module)
    if folder not in BELOW or folder == folder_of(other):
        return True
    return any(other == below or other.startswith(f"{below}.") for below in BELOW[folder])


def train_floor(module: str) -> int:
    room = module.split(".")[1] if module.count(".") > 1 or module.split(".")[-1] in TRAIN_FLOORS else ""
    return TRAIN_FLOORS.index(room) if room in TRAIN_FLOORS else len(TRAIN_FLOORS)


def circles() -> Iterator[list[str]]:
    """Groups of modules that import each other (strongly connected components, Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in sorted(imports(module)):
            if other not in number:
                yield from visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == number[module]:
            place = stack.index(module)
            group = stack[place:]
            del stack[place:]
            if len(group) > 1:
                yield sorted(group)

    for module in modules():
        if module not in number:
            yield from visit(module)


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree(module)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def decisions(node: ast.AST) -> int:
    """Branches, loops, handlers, conditions joined by and/or, and comprehensions; those of nested functions are their
    own."""
    total = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        branches = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case)
        total += isinstance(child, branches)
        total += len(child.values) - 1 if isinstance(child, ast.BoolOp) else 0
        total += 1 + len(child.ifs) if isinstance(child, ast.comprehension) else 0
        total += decisions(child)
    return total


def too_large() -> Iterator[str]:
    for module, path in modules().items():
        name = path.relative_to(ROOT)
        count = path.read_text(encoding="utf-8").count("\n")
        if count > FILE_LINES and module != "configs.schema":
            yield f"{name} has {count} lines"
        for node in functions(module):
            if lines(node) > FUNCTION_LINES:
                yield f"{name}: function {node.name} has {lines(node)} lines"
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef) and lines(node) > CLASS_LINES:
                yield f"{name}: class {node.name} has {lines(node)} lines"


def without_counts(entries) -> set[str]:
    """Entries as they are compared with the list of what is to do: a size may change while it is too large."""
    return {entry.partition(" has ")[0] for entry in entries}


def test_imports_between_folders_run_one_way():
    wrong = [
        f"{module} -> {other}" for module in modules() for other in imports(module) if not may_import(module, other)
    ]
    assert not wrong


def test_imports_inside_train_run_one_way():
    inside = [module for module in modules() if folder_of(module) == "train"]
    wrong = [
        f"{module} -> {other}"
        for module in inside
        for other in imports(module)
        if other in inside and train_floor(other) > train_floor(module)
    ]
    assert not wrong


def test_nothing_outside_tests_imports_from_tests():
    helpers = {path.stem for path in (ROOT / "tests").rglob("*.py")} - {"__init__"}
    wrong = [
        f"{module} -> {name}"
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name and name not in modules() and name.split(".")[0] in {"tests", *helpers}
    ]
    assert not wrong


def test_no_module_imports_itself_over_others():
    found = {f"circle: {', '.join(group)}" for group in circles()}
    assert found == {entry for entry in TO_DO if entry.startswith("circle")}


def test_files_classes_and_functions_are_small():
    found = without_counts(too_large())
    assert found == without_counts(entry for entry in TO_DO if not entry.startswith("circle"))


@pytest.mark.slow
def test_functions_decide_little_on_average():
    """Not above that of commit 6db0e99: 3.85 as radon counts, 3.95 as here."""
    counts = [1 + decisions(node) for module in modules() for node in functions(module)]
    assert sum(counts) / len(counts) <= COMPLEXITY


@pytest.mark.parametrize(
    ("module", "other", "want"),
    [
        ("models.model", "train.rl", False),
        ("data.templates", "models.families.base", True),
        ("data.templates", "models.model", False),
        ("reward.function", "runtime.doors", True),
        ("rl", "train.command", True),
    ],
)
def test_the_floors_are_told_apart(module, other, want):
    assert may_import(module, other) is want
    assert train_floor("train.rl") > train_floor("train.memory.plan") > train_floor("train.algorithm.replay")
