"""Doors: what a YAML may name in place of a built-in. A value is a built-in's name, or `path/to/file.py:name`.

One loader serves every door (reward, objective, advantage, masking method, sampling strategy, target). Standard library
only: worker processes import it.
"""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parent.parent


def is_file_target(given: str) -> bool:
    """Whether a value means `path/to/file.py:name` rather than a built-in's name."""
    return ":" in given or given.endswith(".py")


def open_door(key: str, given: str, builtins: Mapping[str, T]) -> T | Any:
    """What the config key `key` names: the built-in `given`, or the object `name` of `path/to/file.py:name`, whose file
    is run. ValueError, naming the key, where there is no such built-in, file or name, or where the file fails."""
    if given in builtins or not is_file_target(given):
        return choose(key, given, builtins, "name your own: path/to/file.py:name")
    path, name = find_target(key, given)
    try:
        return load_target(f"{path}:{name}")
    except (Exception, SystemExit) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{key}: {given} cannot be loaded: {type(error).__name__}: {reason}") from error


def choose(key: str, given: str, builtins: Mapping[str, T], otherwise: str = "") -> T:
    """The entry `given`; ValueError, naming the config key `key`, the names there are and the one that may be meant.
    otherwise: what else the key takes."""
    if given in builtins:
        return builtins[given]
    names = {name.lower(): name for name in builtins}
    near = difflib.get_close_matches(str(given).lower(), names, n=1)
    hint = f" Did you mean {names[near[0]]!r}?" if near else ""
    rest = f", or {otherwise}" if otherwise else ""
    raise ValueError(f"{key} is {given!r}; choose from {', '.join(builtins)}{rest}.{hint}")


def check_params(key: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` where it fits the parameters and defaults that a function has. ValueError, naming the config key, for
    another name, or for a value of another kind than the default's (a number, a truth value, text, a list)."""
    for name, value in given.items():
        if name not in defaults:
            near = difflib.get_close_matches(name, list(defaults), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            known = f"its parameters are {', '.join(defaults)}" if defaults else "it has no parameters"
            raise ValueError(f"{key}.{name} is unknown: {known}.{hint}")
        default = defaults[name]
        number = isinstance(default, int | float) and not isinstance(default, bool)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if default is not None and not (is_number if number else isinstance(value, type(default))):
            kind = "a finite number" if number else f"of type {type(default).__name__}"
            raise ValueError(f"{key}.{name} is {value!r}; it must be {kind}, as its default {default!r}.")
    return dict(given)


def keyword_params(
    key: str, function: Callable[..., Any], positional: int, given: Mapping[str, Any], params_key: str = ""
) -> dict[str, Any]:
    """`given` where a function that is called with `positional` arguments takes it by keyword. ValueError, naming the
    config key and the function's signature, where it takes another number of arguments, lacks a name, or needs one that
    is not given. params_key: the config key of `given`, `key`_params where none is named."""
    params_key = params_key or f"{key}_params"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: {function!r} is not a function.") from None
    kinds = inspect.Parameter
    parameters = list(signature.parameters.values())
    free = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    spread = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
    title = f"{getattr(function, '__name__', 'it')}{signature}"
    if len(free) < positional and not spread:
        raise ValueError(f"{key}: {title} is called with {positional} arguments in order, and takes {len(free)}.")
    named = {p.name: p for p in parameters if p in free[positional:] or p.kind is kinds.KEYWORD_ONLY}
    if not any(p.kind is kinds.VAR_KEYWORD for p in parameters):
        defaults = {name: None if p.default is kinds.empty else p.default for name, p in named.items()}
        check_params(params_key, defaults, given)
    missing = [name for name, p in named.items() if p.default is kinds.empty and name not in given]
    if missing:
        raise ValueError(f"{key}: {title} needs {', '.join(missing)}: set {params_key}.{missing[0]}.")
    return dict(given)


def call_target(key: str, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """What a user's function returns. What it raises is a ValueError that names the config key, the function's file and
    the line; running out of memory stays what it is."""
    try:
        return function(*args, **named)
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
            raise
        file = getattr(getattr(function, "__code__", None), "co_filename", "")
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
        line = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(f"{key}: {type(error).__name__}: {line} ({frame.filename} line {frame.lineno})") from error


def load_target(target: str) -> Any:
    """The object named by `package.module:name` or `path/to/file.py:name`. A file is run once in a process; modules
    beside it can be imported."""
    where, _, name = target.rpartition(":")
    if not where.endswith(".py"):
        return getattr(importlib.import_module(where), name)
    path = Path(where).resolve()
    digest = hashlib.blake2b(f"{path} {path.stat().st_mtime_ns}".encode(), digest_size=6).hexdigest()
    module_name = f"user_{path.stem}_{digest}"
    if module_name not in sys.modules:
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return getattr(sys.modules[module_name], name)


def find_target(key: str, target: str) -> tuple[Path, str]:
    """The file and the name in `path/to/file.py:name`, checked without running the file. ValueError, naming the config
    key `key`, where either is not there."""
    where, separator, name = target.rpartition(":")
    if not separator or not where.endswith(".py") or not name.isidentifier():
        raise ValueError(f"{key} must look like path/to/file.py:name, got {target!r}")
    path = Path(where).expanduser()
    if not path.is_absolute() and not path.exists() and (REPOSITORY / path).is_file():
        path = REPOSITORY / path
    if not path.is_file():
        files = [str(file) for file in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        near = difflib.get_close_matches(str(path), files, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else f"looked from {Path.cwd()}"
        raise ValueError(f"{key}: no file {where!r}; {hint}")
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise ValueError(f"{key}: {where} line {error.lineno}: {error.msg}") from error
    names = top_level_names(tree)
    if name not in names and "*" not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        raise ValueError(f"{key}: {where} has no {name!r}; nearest: {', '.join(near or sorted(names)) or 'none'}")
    return path, name


def top_level_names(tree: ast.Module) -> set[str]:
    """Every name that a module could bind at its top level; "*" stands for a star import."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
