"""Doors: what a YAML may name in place of a built-in. A value is a built-in's name, or `path/to/file.py:name`.

One loader serves every door (reward, objective, advantage, masking method, sampling strategy, target). Standard library
only: worker processes import it.
"""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def is_file_target(given: str) -> bool:
    """Whether a value means `path/to/file.py:name` rather than a built-in's name."""
    return ":" in given or given.endswith(".py")


def open_door(key: str, given: str, builtins: Mapping[str, T]) -> T | Any:
    """What the config key `key` names: the built-in `given`, or the object `name` of `path/to/file.py:name`, whose file
    is run. ValueError, naming the key, where there is no such built-in, file or name, or where the file fails."""
    if given in builtins:
        return builtins[given]
    if not is_file_target(given):
        near = difflib.get_close_matches(given, list(builtins), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{key} is {given!r}; choose from {', '.join(builtins)}, or name your own: path/to/file.py:name.{hint}"
        )
    path, name = find_target(key, given)
    try:
        return load_target(f"{path}:{name}")
    except Exception as error:
        raise ValueError(f"{key}: {given} cannot be loaded: {type(error).__name__}: {error}") from error


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
