"""The source that a sandbox's interpreter is started with, so that no file of this project has to be visible inside."""

import base64
import functools
import marshal
import os
import re
import sys
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
    codes, unpack = _sources(("start", module)), "compile(code, name, 'exec')"
    if python == os.path.realpath(sys.executable):
        compiled = {name: marshal.dumps(compile(text, name, "exec", optimize=2)) for name, text in codes.items()}
        codes = {name: base64.b64encode(code).decode() for name, code in compiled.items()}
        unpack = "marshal.loads(binascii.a2b_base64(code))"
    return f"""
import binascii, marshal, sys
module = type(sys)
for name in ("reward", "reward.code", "reward.code.inside"):
    sys.modules[name] = module(name)
for name, code in {codes!r}.items():
    made = sys.modules["reward.code.inside." + name] = module("reward.code.inside." + name)
    exec({unpack}, made.__dict__)
"""


def _sources(names: Iterable[str]) -> dict[str, str]:
    """The source of modules of reward.code.inside, each after those that it imports."""
    found: dict[str, str] = {}
    for name in names:
        text = (ROOT / "reward" / "code" / "inside" / f"{name}.py").read_text()
        needed = re.findall(r"^ *from reward\.code\.inside\.(\w+) import", text, re.MULTILINE)
        found |= {**_sources(needed), name: text}
    return found
