"""RL from Python in a few lines: a checkpoint, tasks, a reward. Everything else is a key of the configuration."""

import dis
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from configs import merge
from runtime.files import atomic_write_text
from runtime.run_folder import RunFolder, run_path
from train import rl as loop

Reward = Callable[..., list[float | None]]


@dataclass(frozen=True)
class Trained:
    """A run's folder, the checkpoint of its newest model, and its last figures."""

    folder: Path
    model: Path
    final: Mapping[str, Any]


def rl(
    model: str | Path,
    tasks: str | Path | Sequence[Mapping[str, Any]],
    reward: str | Reward | None = None,
    /,
    **sections: Mapping[str, Any],
) -> Trained:
    """Trains a checkpoint by RL in this process (one device), as `rl.py` does, and resumes as it does.

    model: a checkpoint folder in its original layout, or a hub name. tasks: rows with `question` and what the reward
    asks for (`ground_truth_answer`, ...), or what dataset.train_dataset takes. reward: a function with TRL's signature,
    f(prompts, completions, **columns) -> list of numbers or None; path/to/file.py:name; None = the verifier of
    dataset.data_type. These three are given by position. sections: those of a YAML, as rollout={"max_new_tokens": 256},
    experiment={"total_step": 20}. Given tasks and a function of a script or notebook are written beside the run's
    folder, under names that hold a digest: those of an earlier call stay. ValueError as of `rl.py`, and for a function
    that uses names from around it.
    """
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise ValueError(
                f"{name}={section!r}: a section is a mapping of its keys; model, tasks and reward go first, unnamed."
            )
    given: dict[str, dict[str, Any]] = {name: dict(section) for name, section in sections.items()}
    inputs = run_path(merge(_section(given, "experiment")))
    inputs = inputs.with_name(f"{inputs.name}.inputs")
    data = given.setdefault("dataset", {})
    if isinstance(tasks, str | Path):
        data["train_dataset"] = str(tasks)
    else:
        data["train_dataset"] = str(_write(inputs, "tasks.json", json.dumps(list(map(dict, tasks)), indent=1)))
    given.setdefault("model", {})["pretrained_model"] = str(model)
    if reward is not None:
        data.setdefault("data_type", "general")
        target = reward if isinstance(reward, str) else _target(reward, inputs)
        given.setdefault("reward", {})["function"] = target
    config = merge(given)
    final = loop.run(config) or {}
    folder = run_path(config)
    return Trained(folder, RunFolder(folder).checkpoints / config.model.optimized_name, final)


_LATER = "from __future__ import annotations"
"""Annotations of a function that is written into a file of its own may name what that file has not."""


def _section(tree: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    return {name: tree[name]} if name in tree else {}


def _target(function: Reward, inputs: Path) -> str:
    """path/to/file.py:name of a function: its module's file, or one with its source where that is the running script
    or a notebook, which must not be run again."""
    name = getattr(function, "__name__", "")
    if not name.isidentifier() or not inspect.isfunction(function):
        raise ValueError(f"reward is {function!r}: give a function that has a name, or path/to/file.py:name.")
    module = inspect.getmodule(function)
    if module is not None and module.__name__ != "__main__" and getattr(module, name, None) is function:
        return f"{inspect.getsourcefile(function)}:{name}"
    used = {name: function.__globals__[name] for name in _globals(function.__code__) if name in function.__globals__}
    names = {**used, **inspect.getclosurevars(function).nonlocals}
    imports = [f"import {value.__name__} as {n}" for n, value in names.items() if isinstance(value, ModuleType)]
    others = [n for n, value in names.items() if not isinstance(value, ModuleType)]
    if others:
        raise ValueError(
            f"reward {name} uses {', '.join(others)} from around it, which the process that runs it does not have: "
            "define them inside the function, or put both into a file and give path/to/file.py:name."
        )
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError:
        raise ValueError(f"reward {name} has no source that can be read: give path/to/file.py:name.") from None
    return f"{_write(inputs, 'reward.py', chr(10).join([_LATER, *imports, '', source]))}:{name}"


def _globals(code: CodeType) -> Iterator[str]:
    """Names that a function, and those inside it, look for in their module."""
    yield from (str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals(inner)


def _write(folder: Path, name: str, text: str) -> Path:
    """Writes an input of a run; what it holds is in its name, so that no other is replaced."""
    path = Path(name)
    path = folder / f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}{path.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text)
    return path.resolve()
