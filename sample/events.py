"""Trajectories in which tokens are overwritten: every write of a response, in order.

Shapes: E events, C canvas tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_CHOICE = -1
"""The action of a write that no one chose: a remask by rule, noise."""


@dataclass(frozen=True)
class Events:
    """The writes of one response, parallel lists ordered by step, then place; at most one a step and place.

    step: the denoising step that wrote, counted from 1 over the response; 0 = stood there before the first one. place:
    position, counted from the end of the prompt. token: what the place holds from the end of that step on. action: the
    id that the model chose there, -1 = none did. logprob: of the action (nats, temperature 1, whole vocabulary), 0
    without one.
    """

    step: list[int]
    place: list[int]
    token: list[int]
    action: list[int]
    logprob: list[float]

    def __len__(self) -> int:
        return len(self.step)

    @staticmethod
    def of(rows: Sequence[tuple[int, int, int, int, float]]) -> "Events":
        """Of (step, place, token, action, logprob) in any order."""
        columns = [list(column) for column in zip(*sorted(rows), strict=True)] or [[], [], [], [], []]
        return Events(*columns)

    @staticmethod
    def from_row(row: object) -> "Events":
        """Of the five lists under their names. ValueError, which goes on after "has", names what is damaged."""
        names = list(Events.__dataclass_fields__)
        if not isinstance(row, Mapping) or not all(isinstance(row.get(name), list) for name in names):
            raise ValueError(f"events that are not the lists {', '.join(names)}")
        events = Events(**{name: row[name] for name in names})
        for name, least in (("step", 0), ("place", 0), ("token", 0), ("action", NO_CHOICE)):
            if not all(type(value) is int and value >= least for value in row[name]):
                raise ValueError(f"events whose {name} has something else than whole numbers from {least}")
        if not all(type(value) in (int, float) for value in events.logprob):
            raise ValueError("events whose logprob has something else than numbers")
        if len({len(row[name]) for name in names}) > 1:
            raise ValueError(f"events of {' and '.join(f'{len(row[name])} {name}' for name in names)}")
        order = list(zip(events.step, events.place, strict=True))
        if any(first >= second for first, second in zip(order, order[1:], strict=False)):
            raise ValueError("events that are not in the order of step and place, each place once a step")
        return events

    def check(
        self, ids: Sequence[int], step_map: Sequence[int], logprobs: Sequence[float | None] | None, num_steps: int
    ) -> None:
        """ValueError, which goes on after "has", where the last event of a place is not what the canvas holds there."""
        if max(self.place, default=0) >= len(ids) or max(self.step, default=0) > num_steps:
            raise ValueError(f"events outside its {len(ids)} places or {num_steps} steps")
        decided = {place for place, step in enumerate(step_map) if 0 < step <= num_steps}
        last = dict(zip(self.place, range(len(self)), strict=True))
        if missing := sorted(decided - last.keys()):
            raise ValueError(f"no event for place {missing[0]}, which its step map says is decided")
        for place, i in last.items():
            stands = step_map[place] > 0
            same = ids[place] == self.token[i] and step_map[place] == (self.step[i] if stands else 0)
            if self.action[i] != NO_CHOICE:
                same &= stands and (logprobs is None or _equal(logprobs[place], self.logprob[i]))
            if not same and step_map[place] <= num_steps:  # else filled with pads after the last step
                raise ValueError(f"another token, step or log-probability at place {place} than its last event there")

    def previous(self) -> NDArray[np.int64]:
        """For each event [E] the one before it at its place, -1 for the first."""
        latest: dict[int, int] = {}
        found = np.full(len(self), -1, dtype=np.int64)
        for i, place in enumerate(self.place):
            found[i] = latest.get(place, -1)
            latest[place] = i
        return found

    def overwrites(self) -> NDArray[np.bool_]:
        """Whether each event [E] puts another token where a chosen one stood."""
        previous, token, action = self.previous(), np.array(self.token, np.int64), np.array(self.action, np.int64)
        there = previous >= 0
        return there & (action != NO_CHOICE) & (action[previous] != NO_CHOICE) & (token != token[previous])

    def remasks(self) -> NDArray[np.bool_]:
        """Whether each event [E] takes a chosen token away without a choice."""
        previous, action = self.previous(), np.array(self.action, np.int64)
        return (previous >= 0) & (action == NO_CHOICE) & (action[previous] != NO_CHOICE)


def _equal(one: float | None, other: float) -> bool:
    return one == other or (one != one and other != other)  # NaN is NaN
