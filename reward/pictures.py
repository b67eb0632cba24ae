"""Captions of pictures, and pictures that are drawn, by how near a CLIP model finds text and picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward.base import DRAWN, Reward, column, names_of

Similarity = Callable[[Sequence[Any], Sequence[str]], list[float]]
"""Pictures (files, their bytes, or Pillow's) and texts -> cosine of each pair."""


class DrawnReward(Reward):
    """Responses that are pictures: the similarity of picture and description, at least 0 (CLIPScore, arXiv:2104.08718,
    without its factor); texts: by `verifier`."""

    def __init__(self, verifier: Reward, similarity: Similarity | None) -> None:
        super().__init__()
        self.verifier, self.similarity = verifier, similarity
        self.verifies = verifier.verifies

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if DRAWN not in names_of(rows):
            self.verifier.check(rows)
        elif self.similarity is None:
            raise ValueError(
                "responses are pictures, which nothing grades: set reward.clip_model to the folder of a CLIP model, "
                "which scores how near they are to their descriptions, or name a reward.function"
            )

    def score(self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]) -> list[float | None]:
        if DRAWN in columns:
            assert self.similarity is not None
            return [max(0.0, cosine) for cosine in self.similarity(columns[DRAWN], prompts)]
        rewards = self.verifier(prompts, completions, **columns)
        self.counts.update(self.verifier.counts)
        return rewards

    def close(self) -> None:
        self.verifier.close()


class CaptionReward(Reward):
    """Tasks with `is_caption`: the similarity of the completion and the task's picture, at least 0, as of
    `DrawnReward`; others: by `verifier`. None where a caption's task has no picture."""

    def __init__(self, verifier: Reward, similarity: Similarity | None) -> None:
        super().__init__()
        self.verifier, self.similarity = verifier, similarity

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        others = [row for row in rows if not row.get("is_caption")]
        if len(others) < len(rows) and self.similarity is None:
            raise ValueError(
                f"{len(rows) - len(others)} of {len(rows)} tasks are captions (is_caption): set reward.clip_model to "
                "the folder of a CLIP model, which scores them"
            )
        if others:
            self.verifier.check(others)

    def score(self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]) -> list[float | None]:
        is_caption = [bool(flag) for flag in columns.get("is_caption", [False] * len(completions))]
        rewards: list[float | None] = [None] * len(completions)
        others = [i for i, flag in enumerate(is_caption) if not flag]
        given = self.verifier(
            *([texts[i] for i in others] for texts in (prompts, completions)),
            **{name: [values[i] for i in others] for name, values in columns.items()},
        )
        self.counts.update(self.verifier.counts)
        for i, reward in zip(others, given, strict=True):
            rewards[i] = reward
        captions = self._captions(is_caption, columns)
        if captions:
            assert self.similarity is not None
            found = self.similarity(list(captions.values()), [completions[i] for i in captions])
            for i, similarity in zip(captions, found, strict=True):
                rewards[i] = max(0.0, similarity)
        return rewards

    def _captions(self, is_caption: Sequence[bool], columns: dict[str, list[Any]]) -> dict[int, Any]:
        """The picture of each caption that has one, by the number of its completion."""
        if not any(is_caption):
            return {}
        pictures = column(columns, "pictures", len(is_caption), needed_by="the reward of captions")
        captions = {i: pictures[i][0] for i, flag in enumerate(is_caption) if flag and pictures[i]}
        self.counts["no_picture"] += sum(is_caption) - len(captions)
        return captions

    def close(self) -> None:
        self.verifier.close()
