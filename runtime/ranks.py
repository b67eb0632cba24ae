"""The ranks of a job: processes that hold the same weights and share its work. With one process all of this is the
identity.

A rank leaves a collective call with the same outcome as every other: a value, or an error. A rank that does not come
within the time-out is named.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from runtime.child import FailedElsewhere

if TYPE_CHECKING:
    from runtime.group import Group, Team

T = TypeVar("T")
P = ParamSpec("P")


_group: "Group | None" = None


def join(device_type: str, timeout_seconds: float) -> None:
    """Joins the process group that the environment describes (`Group`). Nothing for one process, or when already
    joined."""
    global _group
    if device_type == "cuda" and "LOCAL_RANK" in os.environ:
        import torch

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // local))
    if _group is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from runtime.group import Group

        _group = Group(device_type, timeout_seconds)


def leave() -> None:
    """Leaves the process group."""
    global _group
    if _group is not None:
        _group.leave()
        _group = None


def rank() -> int:
    return _group.rank if _group else 0


def world_size() -> int:
    return _group.size if _group else 1


def local_world_size() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if _group else 1


def is_main() -> bool:
    """Whether this rank writes files, prints and grades."""
    return rank() == 0


def team(size: int) -> "Team | None":
    """The ranks that this one computes one model with: each `size` neighbours. None for teams of one. Every rank calls
    it."""
    return _group.team(size) if _group is not None and size > 1 else None


def gather(value: T) -> list[T]:
    """The values of all ranks, in order of rank, on every rank. FailedElsewhere when a rank is lost or late."""
    return [value] if _group is None else _group.gather(value)


def on_main(function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """What `function` returns on rank 0, on every rank. Its error is raised on rank 0, FailedElsewhere elsewhere."""
    if _group is None:
        return function(*args, **named)
    outcome: list[T] | None = None
    failure: Exception | None = None
    if is_main():
        try:
            outcome = [function(*args, **named)]
        except Exception as error:
            failure = error
    found = gather(outcome)[0]
    if failure is not None:
        raise failure
    if found is None:
        raise FailedElsewhere("rank 0 failed")
    return found[0]


class SharedCounts:
    """Numbers that all ranks add to, each from 0. Every rank makes one at the same point of its work, and uses it only
    until the next one is made."""

    def __init__(self, *names: str):
        self._alone = dict.fromkeys(names, 0)
        self._shared = dict(zip(names, _group.new_counts(len(names)), strict=True)) if _group else {}

    def add(self, name: str, number: int) -> int:
        """Adds; the sum after that, of all ranks. FailedElsewhere when the rank that keeps the numbers is gone."""
        if _group is not None:
            return _group.add(self._shared[name], number)
        self._alone[name] += number
        return self._alone[name]


def summed(numbers: Mapping[str, float]) -> dict[str, float]:
    """Sums over ranks, name by name; a rank may lack a name."""
    total: dict[str, float] = {}
    for given in gather(dict(numbers)):
        for name, number in given.items():
            total[name] = total.get(name, 0.0) + number
    return total


def require_alike(what: str, value: object) -> None:
    """RuntimeError naming the ranks whose `value` is not rank 0's."""
    values = gather(value)
    others = [str(r) for r, other in enumerate(values) if other != values[0]]
    if others:
        raise RuntimeError(f"{what} of rank {', '.join(others)} differs from rank 0's: the ranks are not one job.")
