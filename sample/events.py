"""Trajectories in which tokens are overwritten: every write of a response, in order.

Shapes: E events, C canvas tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_CHOICE = -1
"""The action of a write that no one chose: a remask by rule, noise, a token that moved here."""
COLUMNS = ("step", "place", "token", "action", "logprob")


@dataclass(frozen=True)
class Events:
    """The writes of one response, parallel lists ordered by step, then place; at most one a step and place.

    step: the denoising step that wrote, counted from 1 over the response; 0 = stood there before the first one. place:
    position, counted from the end of the prompt. token: what the place holds from the end of that step on. action: the
    id that the model chose there, -1 = none did. logprob: of the action (nats, temperature 1, whole vocabulary), 0
    without one. Where tokens move (LLaDA2.2), delete_insert_ids are the actions that move them, and source is the place
    whose content stands at `place` since, as the step wrote it (next to an INSERT: as it was before), -1 = none: a new
    mask, or what was chosen there.
    """

    step: list[int]
    place: list[int]
    token: list[int]
    action: list[int]
    logprob: list[float]
    source: list[int] | None = None
    delete_insert_ids: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.step)

    @staticmethod
    def of(rows: Sequence[tuple[int, int, int, int, float]]) -> "Events":
        """Of (step, place, token, action, logprob) in any order."""
        columns = [list(column) for column in zip(*sorted(rows), strict=True)] or [[], [], [], [], []]
        step, place, token, action, logprob = columns
        return Events(step, place, token, action, logprob)

    def row(self) -> dict[str, Any]:
        """The lists under their names, as JSON; two more where tokens move."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @staticmethod
    def from_row(row: object) -> "Events":
        """Of the five lists under their names. ValueError, which goes on after "has", names what is damaged."""
        names = list(COLUMNS)
        if isinstance(row, Mapping) and row.get("source") is not None:
            names.append("source")
        if not isinstance(row, Mapping) or not all(isinstance(row.get(name), list) for name in names):
            raise ValueError(f"events that are not the lists {', '.join(names)}")
        events = Events(**{name: row[name] for name in names})
        if events.source is not None:
            ids = row.get("delete_insert_ids")
            if not isinstance(ids, (list, tuple)) or [type(i) for i in ids] != [int, int]:
                raise ValueError("events that move without the two delete_insert_ids")
            events = replace(events, delete_insert_ids=tuple(ids))
        for name, least in (("step", 0), ("place", 0), ("token", 0), ("action", NO_CHOICE), ("source", -1)):
            if name in names and not all(type(value) is int and value >= least for value in row[name]):
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
        furthest = max(max(column, default=0) for column in (self.place, self.source or []))
        if furthest >= len(ids) or max(self.step, default=0) > num_steps:
            raise ValueError(f"events outside its {len(ids)} places or {num_steps} steps")
        decided = {place for place, step in enumerate(step_map) if 0 < step <= num_steps}
        last = dict(zip(self.place, range(len(self)), strict=True))
        stands = self.standing(len(ids)) if self.source is not None else None
        if missing := sorted(decided - last.keys()):
            raise ValueError(f"no event for place {missing[0]}, which its step map says is decided")
        for place, i in last.items():
            same = ids[place] == self.token[i]
            if stands is None:
                same &= step_map[place] == (self.step[i] if step_map[place] else 0)
                by = i if self.action[i] != NO_CHOICE else NO_CHOICE
            else:
                by = int(stands[place])
                same &= (step_map[place] > 0) == (by >= 0)
            if by >= 0:
                same &= step_map[place] == self.step[by] and self.action[by] == ids[place]
                same &= logprobs is None or _equal(logprobs[place], self.logprob[by])
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
        if self.delete_insert_ids is not None:
            moves = np.isin(action, self.delete_insert_ids)
            return (self._history(0)[1] >= 0) & (action != NO_CHOICE) & ~moves & (action != token[previous])
        return there & (action != NO_CHOICE) & (action[previous] != NO_CHOICE) & (token != token[previous])

    def remasks(self) -> NDArray[np.bool_]:
        """Whether each event [E] takes a chosen token away without a choice, and does not move it."""
        if self.source is not None:
            return np.zeros(len(self), dtype=np.bool_)
        previous, action = self.previous(), np.array(self.action, np.int64)
        return (previous >= 0) & (action == NO_CHOICE) & (action[previous] != NO_CHOICE)

    def standing(self, places: int) -> NDArray[np.int64]:
        """Number of the event that chose what each place [C] holds in the end, there or where it stood before it moved;
        -1 where it holds the mask."""
        return self._history(places)[0]

    def masks(self) -> NDArray[np.bool_]:
        """Whether each event [E] leaves its place with the mask, where tokens move."""
        return self._history(0)[2] < 0

    def _history(self, places: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The events that chose what stands at each place in the end [C], and what stood at each event's place before
        its step and after it [E]; -1 for the mask."""
        assert self.source is not None
        stands = np.full(max(places, *self.place, *self.source, 0) + 1, -1)
        before, after, step = np.full(len(self), -1), np.full(len(self), -1), np.array(self.step)
        for first in np.flatnonzero(np.diff(step, prepend=-1)).tolist():
            old, here = stands.copy(), range(first, int(np.searchsorted(step, step[first], "right")))
            at = {self.place[i]: i for i in here}
            for i in here:
                place, source = self.place[i], self.source[i]
                before[i] = old[place]
                by = i if source < 0 else at.get(source, i)
                own = self.action[by] == self.token[i]
                stands[place] = after[i] = by if own else -1 if source < 0 else old[source]
        return stands[:places], before, after


def _equal(one: float | None, other: float) -> bool:
    return one == other or (one != one and other != other)  # NaN is NaN
