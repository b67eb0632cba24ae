"""What a user may choose about decoding, checked against the model before any work."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from models import DiffusionLM
from sample.unmask import DREAM_TARGETS, STRATEGIES, TARGETS

CacheMode = Literal["auto", "exact", "none", "prefix", "dual"]


@dataclass(frozen=True)
class SamplingConfig:
    """Decoding choices; `for_model` fills in what depends on the model.

    max_new_tokens: length of the answer at most. block_size: None = the checkpoint's; full attention: 32.
    steps_per_block: denoising steps of a block, an int or one int a block (the last one holds for all further blocks);
        None = one token a step.
    strategy: how many positions a step commits (`sample.unmask.STRATEGIES`); target: the score that ranks them
        (neg_entropy: the least uncertain first). Dream's names of targets (`DREAM_TARGETS`) are taken too.
    alg_temp: low_confidence_static draws positions from softmax(score / alg_temp) without replacement; 0 = the best.
    threshold: of low_confidence_dynamic. entropy_bound: of entropy_bounded, nats.
    temperature: 0 = greedy; filters apply in the order temperature, top_k (0 = off, 1 = greedy), top_p.
    confidence: "untempered" = probability of the sampled token at temperature 1 over the whole vocabulary; "tempered" =
        under the distribution that it was drawn from, as dLLM-RL has it. Greedy tokens have the untempered one always.
    cache: "exact" (block families), "none" (full recompute); full attention also "prefix" and "dual", approximate:
        a block's first call sees everything, later ones only the block and, prefix, what is right of it up to
        further_horizon tokens (None = to the end), against frozen keys and values of the rest (prefix: the left only).
        auto = exact, or none for full attention.
    stop_ids: None = model.eos_ids, empty = never stop. early_stop: false decodes on to the end; the answer is cut at
        the first stop id either way. pad_target_penalty: lowers the score of a pad token (divided by it, or
        multiplied where negative).
    seed: randomness is a hash of (seed, key, position, step). max_slots: sequences decoded at a time.
    fuse_commit: a finished block is committed in the forward that denoises the next one.
    deterministic: fixed shapes (all slots, whole cache), so that the same prompts give the same bits in any order.
    """

    max_new_tokens: int = 256
    block_size: int | None = None
    steps_per_block: int | Sequence[int] | None = None
    strategy: str = "low_confidence_dynamic"
    target: str = "confidence"
    threshold: float = 0.9
    entropy_bound: float = 0.35
    alg_temp: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    confidence: Literal["untempered", "tempered"] = "untempered"
    cache: CacheMode = "auto"
    further_horizon: int | None = None
    stop_ids: Sequence[int] | None = None
    early_stop: bool = True
    pad_id: int | None = None
    pad_target_penalty: float = 1.0
    seed: int = 0
    max_slots: int = 32
    fuse_commit: bool = True
    deterministic: bool = False

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _require(self.block_size is None or self.block_size >= 1, "block_size", self.block_size, "at least 1")
        steps = self.steps_per_block if self.steps_per_block is not None else 1
        steps = [steps] if isinstance(steps, int) else list(steps)
        enough = bool(steps) and all(s >= 1 for s in steps)
        _require(enough, "steps_per_block", self.steps_per_block, "at least 1 step a block")
        _require_name("strategy", self.strategy, STRATEGIES)
        object.__setattr__(self, "target", DREAM_TARGETS.get(self.target, self.target))
        _require_name("target", self.target, TARGETS)
        _require(self.alg_temp >= 0.0, "alg_temp", self.alg_temp, "at least 0 (0 = the best positions)")
        _require(0.0 <= self.threshold <= 1.0, "threshold", self.threshold, "between 0 and 1")
        _require(self.entropy_bound >= 0.0, "entropy_bound", self.entropy_bound, "at least 0")
        _require(self.temperature >= 0.0, "temperature", self.temperature, "at least 0")
        _require(self.top_k >= 0, "top_k", self.top_k, "at least 0 (0 = off)")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        _require_name("confidence", self.confidence, ("untempered", "tempered"))
        _require_name("cache", self.cache, ("auto", "exact", "none", "prefix", "dual"))
        horizon = self.further_horizon
        _require(horizon is None or horizon >= 0, "further_horizon", horizon, "at least 0 (null = to the end)")
        _require(self.pad_target_penalty > 0.0, "pad_target_penalty", self.pad_target_penalty, "above 0")
        _require(self.max_slots >= 1, "max_slots", self.max_slots, "at least 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    def for_model(self, model: DiffusionLM) -> "SamplingConfig":
        """The same choices with every None that depends on the model filled in. ValueError where model and choice do
        not fit."""
        full = model.attention == "full"
        block_size = model.spec.family.decoding_block_size(self.block_size, model.block_size, self.max_new_tokens)
        if not full and self.cache in ("prefix", "dual"):
            raise ValueError(
                f"cache {self.cache!r} approximates full attention; {model.family} has an exact one: use auto or exact."
            )
        if full and self.cache == "exact":
            raise ValueError(
                f"cache 'exact' does not exist for {model.family} (full attention): use none, prefix or dual."
            )
        if self.further_horizon is not None and self.cache != "prefix":
            raise ValueError(
                f"further_horizon={self.further_horizon} is the window of cache 'prefix'; the cache is {self.cache!r}."
            )
        vocab_size = int(model.hf_config.vocab_size)
        for name, ids in (("stop_ids", self.stop_ids or ()), ("pad_id", () if self.pad_id is None else (self.pad_id,))):
            _require(all(0 <= i < vocab_size for i in ids), name, ids, f"ids of the vocabulary, 0 to {vocab_size - 1}")
        pad_id = self.pad_id if self.pad_id is not None else model.pad_id
        return replace(
            self,
            block_size=block_size,
            steps_per_block=self.steps_per_block if self.steps_per_block is not None else block_size,
            cache=self.cache if self.cache != "auto" else "none" if full else "exact",
            stop_ids=tuple(model.eos_ids if self.stop_ids is None else self.stop_ids),
            pad_id=pad_id,
        )


def _require(ok: bool, name: str, value: Any, range_text: str) -> None:
    if not ok:
        raise ValueError(f"sampling {name} is {value!r}; it must be {range_text}.")


def _require_name(name: str, value: str, known: Any) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value), list(known), n=1)
        raise ValueError(
            f"sampling {name} {value!r} is not known; choose from {', '.join(known)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
