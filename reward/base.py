"""What every reward is: a callable that closes, with the counts of its last call for the metrics line."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

SAMPLED_COLUMNS = ("prompts", "completions", "completion_ids", "finish_reason", "num_steps")
"""What a reward is given besides the columns of the tasks."""
DRAWN = "completion_images"
"""The column of pictures that were drawn (Pillow's), where responses are such."""


class RewardError(RuntimeError):
    """A reward keeps failing: further steps would train on nothing."""


class Reward(ABC):
    """`reward(prompts, completions, **columns)` gives one number a completion, None = leave this completion out.

    columns: every column of the tasks as a list aligned with the completions, and completion_ids, finish_reason,
    num_steps. `stats` holds the counts of the last call under the names that the metrics line uses
    (`reward/none_count`, ...); `given`, of a sum, what each of its parts gave then. verifies: it compares a completion
    with a true answer, cheaply and always alike, so that other texts than the responses may be asked about.
    """

    verifies = False

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.stats: dict[str, float] = {}
        self.given: dict[str, list[float | None]] = {}

    def __call__(self, prompts: list[str], completions: list[str], /, **columns: list[Any]) -> list[float | None]:
        self.counts = Counter()
        rewards = self.score(prompts, completions, columns) if completions else []
        self.counts["none"] = sum(reward is None for reward in rewards)
        self.stats = {f"reward/{name}_count": float(count) for name, count in sorted(self.counts.items())}
        return rewards

    @abstractmethod
    def score(self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]) -> list[float | None]:
        """The rewards of one call; adds what should be seen to `self.counts`."""

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:  # noqa: B027
        """ValueError where tasks with these columns cannot be graded, before any is answered."""

    def close(self) -> None:  # noqa: B027
        """Ends the worker processes, if there are any."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every column that some row has."""
    return sorted({name for row in rows for name in row})


def require_column(columns: Collection[str], name: str, *, needed_by: str) -> None:
    """ValueError where a column is not there."""
    if name not in columns:
        raise ValueError(
            f"{needed_by} needs the column {name!r}, but the tasks have {sorted(columns)}; map it with dataset.columns"
        )


def column(columns: dict[str, list[Any]], name: str, length: int, *, needed_by: str) -> list[Any]:
    """The column `name`, checked: there, and one entry a completion."""
    require_column(columns, name, needed_by=needed_by)
    if len(columns[name]) != length:
        raise ValueError(f"column {name!r} has {len(columns[name])} entries for {length} completions")
    return columns[name]
