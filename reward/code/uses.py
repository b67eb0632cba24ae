"""How tests use what the program gives them, from their text."""

import ast
from collections import deque
from collections.abc import Iterator

from reward.code.inside.handles import BY_NAME, BY_USE
from reward.code.source import FunctionNode
from reward.code.ungradable import Ungradable

_PLAIN = (int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, deque)
_ARRAY_ATTRIBUTES = {
    *("T", "all", "any", "argmax", "argmin", "argsort", "astype", "cumsum", "diagonal", "dot", "dtype", "fill"),
    *("flatten", "item", "max", "mean", "min", "ndim", "nonzero", "prod", "ravel", "repeat", "reshape", "round"),
    *("shape", "size", "squeeze", "std", "sum", "swapaxes", "tobytes", "tolist", "trace", "transpose", "var", "view"),
}
_PLAIN_ATTRIBUTES = {name for kind in _PLAIN for name in dir(kind)} | _ARRAY_ATTRIBUTES
_MUTATING = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert", "pop", "popitem", "popleft"),
    *("remove", "reverse", "rotate", "setdefault", "sort", "update", "fill", "difference_update"),
    *("intersection_update", "symmetric_difference_update", "__setitem__", "__delitem__"),
    *("heapify", "heappop", "heappush", "heappushpop", "heapreplace", "insort", "insort_left", "insort_right"),
    "shuffle",
}
_ASSERTING = ("assert", "check", "expect", "raise", "verify", "test")
_STEPS = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Expr,
)
_FORWARDED = {"sys.stdin", "sys.stdout", "sys.stderr", "builtins.input"}  # inside/world.py
_OUTSIDE = (
    *(
        "open",
        "tempfile",
        "shutil",
        "subprocess",
        "multiprocessing",
        "signal",
        "socket",
        "logging",
        "inspect",
        "weakref",
    ),
    *("os.environ", "os.putenv", "os.chdir", "os.mkdir", "os.makedirs", "os.remove", "os.unlink", "os.rename"),
    *("sys.argv", "warnings.catch_warnings", "unittest.main", "unittest.TextTestRunner", "monkeypatch"),
    *("mock.Mock", "mock.MagicMock", "unittest.mock.Mock", "unittest.mock.MagicMock"),
)


class Uses:
    """What becomes of the entries, the program's names, in the tests."""

    def __init__(self, trees: list[ast.Module], entries: set[str], classes: set[str]) -> None:
        """classes: the entries that are known to be classes."""
        self.trees, self.entries, self.classes = trees, entries, classes
        self.nodes = [node for tree in trees for node in ast.walk(tree)]
        self._aliases = {name: {name} for name in entries}
        self._add_aliases()
        self._results: dict[str, set[str]] = {}
        self._add_results()
        self._held = set(self._results)
        self._add_held()

    def makers(self) -> dict[str, int]:
        """The entries whose results are objects. BY_USE: what no plain data has is read of them, or they are called; or
        the entry is named like a class, and anything is read of them. BY_NAME: it is named so, and called."""
        called = {name for node in self.nodes if isinstance(node, ast.Call) for name in self._names(node.func)}
        named = {name: BY_NAME for name in sorted(called) if _is_class_name(name)}
        return named | {name: BY_USE for name in sorted(self._makers_by_use())}

    def _makers_by_use(self) -> set[str]:
        found = set(self.classes)
        for node in self.nodes:
            if isinstance(node, ast.Attribute):
                is_plain = node.attr in _PLAIN_ATTRIBUTES
                found |= {name for name in self._sources(node.value) if not is_plain or _is_class_name(name)}
                found |= {name for name in self._names(node.value) if _is_class_name(name)}
            elif isinstance(node, ast.Call):
                found |= self._sources(node.func)
                if isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
                    found |= {name for part in ast.walk(node) for name in self._names(part) if _is_class_name(name)}
        return found

    def check(self) -> None:
        """Ungradable where a test does with an entry what handles cannot serve."""
        for node in self.nodes:
            if isinstance(node, ast.Call) and self._names(node.func):
                self._check_arguments(node)
            elif isinstance(node, ast.ClassDef) and any(self._names(base) for base in node.bases):
                raise Ungradable(f"a test derives a class from one of the program: {node.name}")
            elif isinstance(node, ast.Compare) and self._is_about_classes(node):
                raise Ungradable(f"a test looks at classes of the program: {ast.unparse(node)}")

    def _is_about_classes(self, compare: ast.Compare) -> bool:
        """`type(x) is Entry`: the class of a handle is another one than the handle of a class."""
        parts = (compare.left, *compare.comparators)
        are_types = any(isinstance(part, ast.Call) and dotted(part.func) == "type" for part in parts)
        return are_types and any(self._names(part) for part in parts)

    def _check_arguments(self, call: ast.Call) -> None:
        """What one function of the program makes for another is no evidence: the two may agree on anything."""
        own = self._names(call.func)
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            for node in ast.walk(argument):
                others = {name for name in self._names(node) - own if not _is_class_name(name)}
                if others and node is not argument:
                    raise Ungradable(f"one function of the program inside a call of another: {ast.unparse(call)}")

    def preparation(self, helpers: set[str]) -> list[int]:
        """The tests that assert nothing, unless none does. helpers: functions of the prefix."""
        helpers = helpers | {node.name for node in self.nodes if isinstance(node, FunctionNode)}
        found = [number for number, tree in enumerate(self.trees) if not _asserts(tree, helpers)]
        return found if len(found) < len(self.trees) else []

    def mutates(self) -> bool:
        """Whether the tests may change containers in place, from whatever they have them."""
        return any(
            (isinstance(node, ast.Call) and _last_name(node.func) in _MUTATING)
            or (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del))
            or isinstance(node, ast.AugAssign)
            for node in self.nodes
        )

    def takes_arrays(self) -> bool:
        """Whether the tests speak of arrays; else a list may be in the place of one."""
        return any(whole.partition(".")[0] == "numpy" for whole in _imported(self.nodes).values()) or any(
            isinstance(node, ast.Attribute) and node.attr in _ARRAY_ATTRIBUTES for node in self.nodes
        )

    def mentions(self, node: ast.AST) -> bool:
        """Whether an expression has to do with the program: with one of its names, or with what came of one."""
        return any(
            isinstance(part, ast.Name) and (part.id in self._aliases or part.id in self._held)
            for part in ast.walk(node)
        )

    def _names(self, node: ast.AST) -> set[str]:
        """The entries that a name stands for."""
        return self._aliases.get(node.id, set()) if isinstance(node, ast.Name) else set()

    def _sources(self, node: ast.AST) -> set[str]:
        """The entries whose result an expression is, or is computed from."""
        if isinstance(node, ast.Call):
            return self._names(node.func)
        if isinstance(node, ast.Name):
            return self._results.get(node.id, set())
        if isinstance(node, ast.BinOp):
            return self._sources(node.left) | self._sources(node.right)
        return self._sources(node.value) if isinstance(node, ast.Await | ast.NamedExpr) else set()

    def _add_aliases(self) -> None:
        """Other names of the entries: parameters of functions that get them, and variables."""
        functions = {node.name: node for node in self.nodes if isinstance(node, FunctionNode)}
        for node in self.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
                parameters = functions[node.func.id].args.args
                for parameter, value in zip(parameters, node.args, strict=False):
                    self._alias(parameter.arg, value)
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        self._alias(target.id, node.value)

    def _alias(self, name: str, value: ast.AST) -> None:
        if isinstance(value, ast.Name) and value.id in self.entries:
            self._aliases.setdefault(name, set()).add(value.id)

    def _add_results(self) -> None:
        """Variables that hold what an entry returned, or what was computed from it."""
        bindings = list(_bindings(self.nodes))
        size = -1
        while size != (size := sum(map(len, self._results.values()))):
            for name, value in bindings:
                if sources := self._sources(value):
                    self._results.setdefault(name, set()).update(sources)

    def _add_held(self) -> None:
        """Variables whose value mentions the program, however it is computed."""
        bindings = [*_bindings(self.nodes), *_loops(self.nodes)]
        size = -1
        while size != (size := len(self._held)):
            self._held |= {name for name, value in bindings if self.mentions(value)}


def _loops(nodes: list[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """The variables of loops, each with what is run through."""
    for node in nodes:
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            for part in ast.walk(node.target):
                if isinstance(part, ast.Name):
                    yield part.id, node.iter


def _bindings(nodes: list[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for node in nodes:
        pairs: list[tuple[ast.AST | None, ast.AST | None]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr | ast.AugAssign):
            pairs = [(node.target, node.value)]
        elif isinstance(node, ast.withitem):
            pairs = [(node.optional_vars, node.context_expr)]
        for target, value in pairs:
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
                pairs += zip(target.elts, value.elts, strict=True)
            if isinstance(target, ast.Name) and value is not None:
                yield target.id, value


def _is_class_name(name: str) -> bool:
    return name[:1].isupper() and "_" not in name


def _asserts(tree: ast.Module, helpers: set[str]) -> bool:
    """Whether a test can fail otherwise than by an error."""
    for statement in tree.body:
        if not isinstance(statement, _STEPS):
            return True
        if isinstance(statement, FunctionNode | ast.ClassDef):
            continue
        for node in ast.walk(statement):
            name = dotted(node.func) if isinstance(node, ast.Call) else ""
            if name in helpers or any(word in name.lower() for word in _ASSERTING):
                return True
    return False


def check_surroundings(trees: list[ast.Module]) -> None:
    """Ungradable where a test changes or looks at what is around the program, in a way that does not cross."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = _imported(nodes)
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)} - modules.keys()
    for node in nodes:
        root, dot, rest = dotted(node).partition(".")
        name = "" if root in bound else modules.get(root, root) + dot + rest
        if any(name == outside or name.startswith(outside + ".") for outside in _OUTSIDE):
            raise Ungradable(f"a test uses {name}")
        is_changed = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if is_changed and root in modules and name not in _FORWARDED:
            raise Ungradable(f"a test changes {name}")
        if isinstance(node, ast.Call) and "patch" in dotted(node.func).split("."):
            target = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            if target not in _FORWARDED:
                raise Ungradable(f"a test uses {ast.unparse(node)}")


def _imported(nodes: list[ast.AST]) -> dict[str, str]:
    """The names that are imported, with the whole names that they stand for."""
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                found[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _last_name(node: ast.AST) -> str:
    """The last name of an expression of names with dots, whatever the first is."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def dotted(node: ast.AST) -> str:
    """The text of a name with dots, "" of any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (below := dotted(node.value)):
        return f"{below}.{node.attr}"
    return ""
