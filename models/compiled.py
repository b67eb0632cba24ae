"""torch's compiler: whether it can be used, and what it is used on."""

import functools
import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable)

_SHAPES = 128
"""Versions of one function that are compiled at most: buckets of slots, with and without commits, layouts, training."""


def switched_off() -> bool:
    """Whether the user has told torch to compile nothing: TORCH_COMPILE_DISABLE=1, or TORCHDYNAMO_DISABLE=1."""
    import torch._dynamo

    return bool(torch._dynamo.config.disable) or os.environ.get("TORCHDYNAMO_DISABLE") == "1"


def obstacle(device: torch.device) -> str | None:
    """Why nothing can be compiled for this device; None where it can."""
    if switched_off():
        return "torch's compiler is switched off by TORCH_COMPILE_DISABLE or TORCHDYNAMO_DISABLE"
    compilers = ("gcc", "cc", "clang") if device.type == "cuda" else ("g++", "clang++")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if not any(map(shutil.which, compilers)):
        return f"there is no C compiler ({', '.join(compilers)}; apt-get install g++)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are not installed (apt-get install python3-dev)"
    if device.type == "cpu" and not torch.cpu._is_avx2_supported():
        return "the processor has no AVX2"
    return None


@functools.cache
def suits(device: torch.device) -> bool:
    """Whether what runs there all the time is compiled: on a GPU, where it can be and is not switched off; a warning
    says once where it cannot."""
    if device.type != "cuda" or switched_off():
        return False
    problem = obstacle(device)
    if problem is not None:
        logger.warning("nothing is compiled for the GPU, which is slow: %s", problem)
    return problem is None


def compiled_on(device: torch.device, function: F) -> F:
    """The function, compiled where that suits the device, once for all lengths above one of its tensors' first axis:
    one version for the first length and one for others might round differently. Where torch fails to compile it, a
    warning says so once and it runs as it is."""
    if not suits(device):
        return function
    raise_limit()
    return cast(F, _Compiled(function))


class _Compiled:
    """A function that is compiled when it is called. It is one graph, so that nothing of it has run when that fails:
    it may write into its arguments."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.fails = function, False
        self.compiled = torch.compile(function, fullgraph=True)

    def __call__(self, *arguments: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException

        if not self.fails:
            _open_lengths(arguments)
            try:
                return self.compiled(*arguments)
            except TorchDynamoException as error:
                self.fails = True
                why = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                said = "%s runs operation by operation: torch %s cannot compile it: %s"
                logger.warning(said, self.function.__name__, torch.__version__, why)
        return self.function(*arguments)


def _open_lengths(arguments: Any) -> None:
    """Tells torch's compiler that the first axis of every tensor among these will have other lengths, and no other
    axis."""
    from torch._dynamo import mark_static, maybe_mark_dynamic

    for argument in tree_leaves(arguments):
        if isinstance(argument, Tensor):
            maybe_mark_dynamic(argument, 0)
            for axis in range(1, argument.dim()):
                mark_static(argument, axis)


def raise_limit() -> None:
    """torch stops compiling a function after 8 versions, which our shapes exceed."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
