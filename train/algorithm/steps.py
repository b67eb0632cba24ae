"""The denoising steps of a trajectory: neighbours merged, and what the canvas held before each of them where tokens are
overwritten or masked again.

Shapes: C canvas tokens, E events.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sample.events import NO_CHOICE, Events

Ints = NDArray[np.int64]


def shrink_steps(step_map_C: Ints, group_C: Ints, shrink: int) -> Ints:
    """Merges neighbouring steps: the distinct steps of each group (a block), ascending, are taken `shrink` at a
    time and each is replaced by the largest of its set (TraceRL, arXiv:2509.06949). Steps 0 (undecided) stay 0."""
    if shrink == 1:
        return step_map_C
    out = step_map_C.copy()
    for group in np.unique(group_C):
        inside = (group_C == group) & (step_map_C > 0)
        steps = np.unique(step_map_C[inside])
        if len(steps):
            last = np.minimum((np.arange(len(steps)) // shrink + 1) * shrink, len(steps)) - 1
            out[inside] = steps[last][np.searchsorted(steps, step_map_C[inside])]
    return out


def shrunk_choices(events: Events, unit_C: Ints, shrink: int) -> Ints:
    """The steps [E] of the events that are choices, merged as `shrink_steps` does, by the unit of their places; 0 for
    writes that no one chose."""
    step_E, place_E, action_E = (np.array(x, dtype=np.int64) for x in (events.step, events.place, events.action))
    return shrink_steps(np.where(action_E == NO_CHOICE, 0, step_E), unit_C[place_E], shrink)


def last_events(events: Events, places: int) -> Ints:
    """Number of the last event of each place [C], -1 without one. Where tokens move, of the one that chose what stands
    there."""
    if events.source is not None:
        return events.standing(places)
    last_C = np.full(places, -1, dtype=np.int64)
    last_C[np.array(events.place, dtype=np.int64)] = np.arange(len(events))  # of equal places the last one stays
    return last_C


@dataclass(frozen=True)
class Moment:
    """A unit (a block) before one of its steps, or before the first of a set of merged ones. rank: the set's among the
    unit's; ids_C: what its places held then, other units as they ended; event_C: number of the event that is the last
    choice at each place in these steps, -1 without one. step: the first of them."""

    unit: int
    rank: int
    step: int
    ids_C: Ints
    event_C: Ints


def moments(events: Events, ids_C: Ints, unit_C: Ints, mask_id: int, shrink: int) -> Iterator[Moment]:
    """Every moment of every unit in which something was chosen, in the order of units, then steps. ids_C: the canvas as
    it ended; a place holds the mask id before its first event."""
    step_E, place_E, token_E = (np.array(x, dtype=np.int64) for x in (events.step, events.place, events.token))
    unit_E, set_E = unit_C[place_E], shrunk_choices(events, unit_C, shrink)
    for unit in np.unique(unit_E[set_E > 0]):
        mine = np.flatnonzero(unit_E == unit)
        held_C, written = np.where(unit_C == unit, mask_id, ids_C), 0
        for rank, last_step in enumerate(np.unique(set_E[mine][set_E[mine] > 0])):
            chosen = mine[set_E[mine] == last_step]
            before = int(np.searchsorted(step_E[mine], step_E[chosen[0]]))
            earlier = mine[written:before]
            held_C[place_E[earlier]], written = token_E[earlier], before  # of equal places the last one stays
            event_C = np.full(len(ids_C), -1, dtype=np.int64)
            event_C[place_E[chosen]] = chosen
            yield Moment(int(unit), rank, int(step_E[chosen[0]]), held_C.copy(), event_C)
