"""A code task and what its tests said of a program."""

import ast
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

DEFAULT_TIME_LIMIT_SECONDS = 1.0
MAX_TIME_LIMIT_SECONDS = 600.0

Status = Literal[
    "passed", "wrong", "error", "timeout", "memory", "output_limit", "no_code", "infra_error", "ungradable"
]


@dataclass(frozen=True)
class Verdict:
    """What the tests said of a program.

    status: passed, or that of the first test that did not pass (wrong, error, timeout, memory, output_limit), or
    no_code. infra_error (the sandbox failed several times) and ungradable (the tests cannot be run apart from the
    program) are no fault of the program. detail says more, for people.
    """

    passed: bool
    status: Status
    passed_tests: int
    total_tests: int
    detail: str = ""


@dataclass(frozen=True)
class CodeTests:
    """A code task in dLLM-RL's schema, checked."""

    method: Literal["function", "stdio"]
    time_limit_seconds: float
    tests: list[str]
    prefix: str = ""
    outputs: list[str] | None = None

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> "CodeTests":
        """test_method, test_time_limit (1 second), and test_list and prefix, or test_input and test_output.

        ValueError that names the field.
        """
        method = task.get("test_method") or ("stdio" if task.get("test_input") is not None else "function")
        limit = _seconds(task.get("test_time_limit"))
        if method == "function":
            return cls("function", limit, _strings(task, "test_list"), str(task.get("prefix") or ""))
        if method != "stdio":
            raise ValueError(f"test_method must be function or stdio, got {method!r}")
        inputs, outputs = _strings(task, "test_input"), _strings(task, "test_output")
        if len(inputs) != len(outputs):
            raise ValueError(f"test_input has {len(inputs)} entries and test_output {len(outputs)}")
        return cls("stdio", limit, inputs, outputs=outputs)


def _seconds(value: Any) -> float:
    try:
        seconds = DEFAULT_TIME_LIMIT_SECONDS if value is None else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds <= MAX_TIME_LIMIT_SECONDS:
        raise ValueError(f"test_time_limit must be 0 to {MAX_TIME_LIMIT_SECONDS:g} seconds, got {value!r}")
    return seconds


def _strings(task: Mapping[str, Any], name: str) -> list[str]:
    """A field that is a list of strings, or such a list written as JSON or as a Python literal."""
    value = task.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            with suppress(ValueError, SyntaxError):
                value = ast.literal_eval(value)
    if isinstance(value, tuple):
        value = list(value)
    elif value is not None and hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} must be a list of strings and not empty, got {str(value)[:80]!r}")
    return value
