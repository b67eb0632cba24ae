"""Which free slot a request gets, and whether its prompt lies there already, is copied or must be run.

A prompt is run once: siblings of its group copy it, or follow in its slot.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sample.request import Request


class Copy(NamedTuple):
    """A prompt of so many tokens that one slot hands to another."""

    source: int
    target: int
    prompt_tokens: int


class Seating:
    """One round of admission. occupant: slot -> the request at work there; resident: slot -> the group whose prompt its
    keys and values begin with. Both are kept up to date.

    taken, fresh, copies: slots given away, those whose prompt must be run, prompts to be copied.
    """

    def __init__(self, free: Sequence[int], occupant: dict[int, Request], resident: dict[int, int]):
        self.free = dict.fromkeys(free)
        self.occupant, self.resident = occupant, resident
        self.taken: list[int] = []
        self.fresh: list[int] = []
        self.copies: list[Copy] = []
        self._holder = {request.group: slot for slot, request in occupant.items()}
        self._homes = _by_group(free, resident)

    def take(self, request: Request) -> None:
        """Gives the request a free slot, its group's prompt in it if there is such a one."""
        slot = self._slot_for(request.group)
        if self.resident.get(slot) != request.group:
            if request.group in self._holder:
                self.copies.append(Copy(self._holder[request.group], slot, len(request.prompt_ids)))
            else:
                self.fresh.append(slot)
        del self.free[slot]
        self._holder.setdefault(request.group, slot)
        self.occupant[slot], self.resident[slot] = request, request.group
        self.taken.append(slot)

    def _slot_for(self, group: int) -> int:
        homes = self._homes.get(group, [])
        while homes and homes[-1] not in self.free:
            homes.pop()
        return homes.pop() if homes else next(iter(self.free))


def _by_group(free: Sequence[int], resident: Mapping[int, int]) -> dict[int, list[int]]:
    """Group -> the free slots that hold its prompt, the first one last."""
    homes: dict[int, list[int]] = {}
    for slot in reversed(free):
        if slot in resident:
            homes.setdefault(resident[slot], []).append(slot)
    return homes
