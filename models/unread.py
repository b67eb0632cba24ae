"""Weights that stay in their files until an engine takes its shard of each.

Such a parameter has its shape and type, but no memory: it stands in for the weight and knows how to read it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Read = Callable[[], Tensor]


def stand_in(shape: torch.Size, dtype: torch.dtype, read: Read) -> nn.Parameter:
    """A parameter whose weight `read` gives, whole and on the host, in this type."""
    parameter = nn.Parameter(torch.zeros((), dtype=dtype).expand(shape))
    leave_unread(parameter, read)
    return parameter


def leave_unread(parameter: nn.Parameter, read: Read) -> None:
    """From now on the parameter's weight is what `read` gives."""
    parameter._read_weight = read  # type: ignore[attr-defined]


def is_unread(parameter: Tensor) -> bool:
    """Whether the parameter stands in for a weight that was not read."""
    return getattr(parameter, "_read_weight", None) is not None


def weight_of(parameter: Tensor) -> Tensor:
    """The parameter's weight: as it is, or read now and not kept."""
    read: Read | None = getattr(parameter, "_read_weight", None)
    return parameter.detach() if read is None else read()


def read_in_place(parameter: nn.Parameter) -> None:
    """The parameter holds its weight from now on."""
    if is_unread(parameter):
        parameter.data = weight_of(parameter)
        del parameter._read_weight  # type: ignore[attr-defined]
