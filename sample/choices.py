"""What a denoising step reads of the choices that a user has."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How tokens are drawn, scored and committed: the part of `SamplingConfig` that strategies and targets see."""

    temperature: float = 0.0
    """Divides the logits before tokens are drawn; 0 = greedy. Filters follow in the order top_k, top_p."""
    top_k: int = 0
    """Tokens at least as likely as the k-th may be drawn; 0 = all, 1 = greedy."""
    top_p: float = 1.0
    """Likeliest tokens up to this probability may be drawn; 1 = all."""
    confidence: Literal["untempered", "tempered"] = "untempered"
    """untempered: probability of the drawn token at temperature 1 over the whole vocabulary. tempered: under the
    distribution that it was drawn from, as dLLM-RL has it. Greedy tokens have the untempered one always."""
    threshold: float = 0.9
    """Of low_confidence_dynamic: positions whose probability exceeds it are committed."""
    entropy_bound: float = 0.35
    """Of entropy_bounded, nats."""
    edit_threshold: float | None = None
    """Of block families: a step also overwrites tokens of its block where the model proposes another one whose
    confidence (as `confidence` has it; under the target margin_confidence the margin) exceeds this. None = what is
    decided stays."""
    remask_threshold: float | None = None
    """Tokens of the block at hand to which a step gives a probability (temperature 1) below this return to the mask.
    None = none do."""
    delete_insert_ids: tuple[int, int] | None = None
    """With edit_threshold, of LLaDA2.2: ids of the tokens DELETE and INSERT, which move what is right of them
    (`sample.moves`); the model's, whatever is given."""
    max_post_steps: int = 16
    """Steps of a block without masks, which can only overwrite or remask, at most; 0 = the block ends when its last
    mask falls."""
    remask_budget: int = 16
    """Tokens of a block that may return to the mask."""
    alg_temp: float = 0.0
    """low_confidence_static draws positions from softmax(score / alg_temp) without replacement; 0 = the best."""
    pad_id: int | None = None
    """The pad token; None = the model's."""
    pad_target_penalty: float = 1.0
    """Lowers the score of a pad token: divided by it, or multiplied where the score is negative."""

    def __post_init__(self) -> None:
        require(self.temperature >= 0.0, "temperature", self.temperature, "at least 0")
        require(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0 = off)")
        require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        require_name("confidence", self.confidence, ("untempered", "tempered"))
        require(0.0 <= self.threshold <= 1.0, "threshold", self.threshold, "between 0 and 1")
        require(self.entropy_bound >= 0.0, "entropy_bound", self.entropy_bound, "at least 0")
        for name in ("edit_threshold", "remask_threshold"):
            value = getattr(self, name)
            require(value is None or 0.0 <= value <= 1.0, name, value, "between 0 and 1 (null = off)")
        require(self.max_post_steps >= 0, "max_post_steps", self.max_post_steps, "at least 0 (0 = none)")
        require(self.remask_budget >= 0, "remask_budget", self.remask_budget, "at least 0 (0 = none)")
        require(self.alg_temp >= 0.0, "alg_temp", self.alg_temp, "at least 0 (0 = the best positions)")
        require(self.pad_target_penalty > 0.0, "pad_target_penalty", self.pad_target_penalty, "above 0")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def moves(self) -> bool:
        """Whether edits delete and insert."""
        return self.edit_threshold is not None and self.delete_insert_ids is not None

    @property
    def revises(self) -> bool:
        """Whether steps change what is decided."""
        return self.edit_threshold is not None or self.remask_threshold is not None


def require(ok: bool, name: str, value: Any, range_text: str) -> None:
    """ValueError where a choice is out of its range."""
    if not ok:
        raise ValueError(f"sampling {name} is {value!r}; it must be {range_text}.")


def require_name(name: str, value: str, known: Collection[str]) -> None:
    """ValueError, with the nearest name, where a choice is none of those known."""
    if value not in known:
        near = difflib.get_close_matches(str(value), list(known), n=1)
        raise ValueError(
            f"sampling {name} {value!r} is not known; choose from {', '.join(known)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
