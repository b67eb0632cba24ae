"""The source that a sandbox's interpreter is started with, so that no file of this project has to be visible inside."""

import base64
import functools
import marshal
import os
import re
import sys
import types
import zlib
from collections.abc import Iterable
from typing import Any

from reward.code.mounts import ROOT


def bootstrap(python: str, settings: dict[str, Any], call: list[Any]) -> str:
    """The program that takes the place of a script: begins with `settings`, then calls [module, function, *arguments]
    of reward.code.inside."""
    return f"""{_modules(python, call[0])}
sys.modules["reward.code.inside.start"].begin({settings!r})
sys.modules["reward.code.inside.{call[0]}"].{call[1]}(*{call[2:]!r})
"""


@functools.cache
def _modules(python: str, module: str) -> str:
    """Source that makes the modules of reward.code.inside which `module` needs; compiled already for this same
    interpreter. It crosses as one command-line argument, which may have 128 KiB."""
    sources = _sources(("start", module))
    made = f"[(name, compile(text, name, 'exec')) for name, text in {sources!r}.items()]"
    if python == os.path.realpath(sys.executable):
        codes = [(name, _bare(compile(text, name, "exec", optimize=2))) for name, text in sources.items()]
        packed = base64.b64encode(zlib.compress(marshal.dumps(codes), 9))
        made = f"marshal.loads(zlib.decompress(binascii.a2b_base64({packed!r})))"
    return f"""
import binascii, marshal, sys, zlib
module = type(sys)
for name in ("reward", "reward.code", "reward.code.inside"):
    sys.modules[name] = module(name)
for name, code in {made}:
    made = sys.modules["reward.code.inside." + name] = module("reward.code.inside." + name)
    exec(code, made.__dict__)
"""


def _bare(code: types.CodeType) -> types.CodeType:
    """Code without the places of its lines, which take half of its size."""
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
