"""The source that a sandbox's interpreter is started with, so that no file of this project has to be visible inside."""

import functools
import marshal
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterable
from typing import Any

from reward.code.mounts import ROOT


def bootstrap(python: str, settings: dict[str, Any], call: list[Any]) -> tuple[str, int]:
    """(the program that takes the place of a script, a descriptor that it reads its modules from). It begins with
    `settings`, then calls [module, function, *arguments] of reward.code.inside."""
    modules = _modules(python, call[0])
    make = "code" if _is_this(python) else "compile(code, name, 'exec')"
    source = f"""import marshal, posix, sys
module = type(sys)
for name in ("reward", "reward.code", "reward.code.inside"):
    sys.modules[name] = module(name)
for name, code in marshal.loads(posix.pread({modules}, {os.fstat(modules).st_size}, 0)):
    made = sys.modules["reward.code.inside." + name] = module("reward.code.inside." + name)
    exec({make}, made.__dict__)
posix.close({modules})
sys.modules["reward.code.inside.start"].begin({settings!r})
sys.modules["reward.code.inside.{call[0]}"].{call[1]}(*{call[2:]!r})
"""
    return source, modules


def _is_this(python: str) -> bool:
    return python == os.path.realpath(sys.executable)


@functools.cache
def _modules(python: str, module: str) -> int:
    """A nameless file, open to read, with the modules of reward.code.inside which `module` needs; compiled already for
    this same interpreter. One for all sandboxes of this process: each reads it from the start."""
    found: list[tuple[str, Any]] = list(_sources(("start", module)).items())
    if _is_this(python):
        found = [(name, _bare(compile(text, name, "exec", optimize=2))) for name, text in found]
    with tempfile.TemporaryFile() as file:
        file.write(marshal.dumps(found))
        file.flush()
        return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)


def _bare(code: types.CodeType) -> types.CodeType:
    """Code without the places of its lines, which take half of its size, and of the time to load it."""
    inner = tuple(_bare(item) if isinstance(item, types.CodeType) else item for item in code.co_consts)
    return code.replace(co_linetable=b"", co_consts=inner)


def _sources(names: Iterable[str]) -> dict[str, str]:
    """The source of modules of reward.code.inside, each after those that it imports."""
    found: dict[str, str] = {}
    for name in names:
        text = (ROOT / "reward" / "code" / "inside" / f"{name}.py").read_text()
        needed = re.findall(r"^from reward\.code\.inside\.(\w+) import", text, re.MULTILINE)
        found |= {**_sources(needed), name: text}
    return found
