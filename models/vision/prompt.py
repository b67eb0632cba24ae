"""Prompts with pictures: a picture is a run of prompt positions.

A position of a picture that is no token of the vocabulary holds the family's image id (negative), and a row of features
stands for it, in reading order. What a model reads (`DiffusionLM.hidden`) numbers these positions: -1 - row of a table.

Shapes: L tokens, D hidden size.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.vision.images import ImageFault


class Picture:
    """A picture in a model's terms.

    ids: what stands for it in a prompt. features: [positions with the image id, D], None where its ids are tokens;
    computed when first asked for, if given as a function, and kept until `forget`. digest: names its bytes ("" =
    unknown). source: what its family makes the features from. again: makes the same picture anew from its file, so that
    `forget` frees its pixels too.
    """

    again: Callable[[], "Picture"] | None = None

    def __init__(
        self,
        ids: Sequence[int],
        features: Tensor | Callable[[], Tensor] | None = None,
        digest: str = "",
        source: Any = None,
    ):
        self.ids, self.digest, self._source = list(ids), digest, source
        self._make = features if callable(features) else None
        self._features = None if callable(features) else features
        self._is_whole = True
        self._of_others: dict[Any, Tensor] = {}

    @property
    def features(self) -> Tensor | None:
        if self._features is None:
            self._recall()
            if self._make is not None:
                self._features = self._make()
        return self._features

    @property
    def source(self) -> Any:
        self._recall()
        return self._source

    def features_of(self, model: Any, make: Callable[[Any], Tensor]) -> Tensor:
        """The features that another model makes from `source`, kept until `forget`."""
        if model not in self._of_others:
            self._of_others[model] = make(self.source)
        return self._of_others[model]

    def forget(self) -> None:
        """Frees what can be computed again: features and, where `again` is known, what they are made from."""
        self._of_others.clear()
        if self._make is None:
            return
        self._features = None
        if self.again is not None:
            self._make = self._source = None
            self._is_whole = False

    def _recall(self) -> None:
        """ImageFault where the file holds another picture by now, or none."""
        if self._is_whole:
            return
        assert self.again is not None
        made = self.again()
        if made.digest != self.digest:
            raise ImageFault(self.digest, "changed", "its file holds another picture than before")
        self._make, self._source, self._is_whole = made._make, made._source, True


class Prompt:
    """ids: a prompt with every picture spelled out. features: rows for the positions that hold an image id, in reading
    order; of `pictures` where none are given. rows: how many. digests: of the pictures. ValueError where rows and
    positions differ in number."""

    def __init__(self, ids: Sequence[int], features: Tensor | None = None, pictures: Sequence[Picture] = ()):
        self.ids = [int(i) for i in ids]
        self.pictures = tuple(pictures)
        self._features = features
        rows = len(features) if features is not None else sum(sum(i < 0 for i in p.ids) for p in self.pictures)
        require_rows(sum(i < 0 for i in self.ids), rows)
        self.rows = rows

    @property
    def has_rows(self) -> bool:
        """Whether rows of features stand for some of its positions."""
        return self.rows > 0

    @staticmethod
    def of(prompt: "Prompt | Sequence[int]") -> "Prompt":
        return prompt if isinstance(prompt, Prompt) else Prompt(prompt)

    @property
    def features(self) -> Tensor | None:
        if self._features is not None or not self.has_rows:
            return self._features
        rows = [row for picture in self.pictures if (row := picture.features) is not None]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def forget(self) -> None:
        """Frees features of pictures that can be computed again."""
        for picture in self.pictures:
            picture.forget()

    @property
    def digests(self) -> list[str]:
        return [picture.digest for picture in self.pictures]

    def name(self) -> str:
        """Names what the ids do not say: the pictures by their digests, else by the features' bytes; "" where there is
        no such."""
        if not self.has_rows:
            return ""
        if self.pictures and all(self.digests):
            return " ".join(self.digests)
        features = self.features
        assert features is not None
        return hashlib.sha256(features.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()

    def numbered(self) -> list[int]:
        """The ids with -1 - row in place of each image id."""
        rows = iter(range(len(self.ids)))
        return [i if i >= 0 else -1 - next(rows) for i in self.ids]


def require_rows(positions: int, rows: int) -> None:
    """ValueError where positions of pictures and rows of features differ in number."""
    if rows != positions:
        raise ValueError(
            f"{positions} positions hold an image id and there are {rows} rows of features: give one row a position "
            "(model.prompt makes both)."
        )


def numbered(ids_BL: Tensor) -> Tensor:
    """Ids with -1 - row in place of each negative one, rows counted in reading order over all sequences."""
    negative = ids_BL < 0
    rows = negative.flatten().cumsum(0).unflatten(0, ids_BL.shape)
    return torch.where(negative, -rows, ids_BL)


def embedded(tokens_BLD: Tensor, ids_BL: Tensor, features: Tensor) -> Tensor:
    """Embeddings of tokens with the feature row -1 - id in place of each negative id."""
    rows = features.to(tokens_BLD)[(-1 - ids_BL).clamp_min(0)]
    return torch.where((ids_BL < 0)[..., None], rows, tokens_BLD)
