"""Features of the pictures in the prompts at work: one table, into which slots point.

Shapes: n slots, D hidden size.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from models import Prompt
from sample.request import Request


class PictureTable:
    """The feature rows of the prompts at work, a prompt's once however many slots have it.

    rows: [rows, D], None without pictures. A prompt's features are asked for when its first sample gets a slot.
    forgets: and freed when none of its samples has one any more.
    """

    def __init__(self, forgets: bool = False) -> None:
        self.rows: Tensor | None = None
        self.forgets = forgets
        self._held: dict[int, Prompt] = {}
        self._first: dict[int, int] = {}

    def hold(self, occupant: Mapping[int, Request]) -> bool:
        """Holds the prompts of these slots, and no others where one of them was not held yet; whether rows moved."""
        prompts = {request.group: request.prompt for request in occupant.values() if request.prompt.has_rows}
        if prompts.keys() <= self._held.keys():
            return False
        if self.forgets:
            self.forget(keep=prompts)
        self._held = prompts
        shown = {group: prompt.features for group, prompt in prompts.items()}
        rows = [features for features in shown.values() if features is not None]
        self._first, start = {}, 0
        for group, features in zip(shown, rows, strict=True):
            self._first[group] = start
            start += len(features)
        self.rows = torch.cat(rows)
        return True

    def forget(self, keep: Collection[int] = ()) -> None:
        """Frees the features of the held prompts but those of some groups."""
        for group, prompt in self._held.items():
            if group not in keep:
                prompt.forget()

    def first_row(self, request: Request) -> int:
        """Where the rows of a request's prompt begin; 0 where it has none."""
        return self._first.get(request.group, 0)
