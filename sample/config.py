"""What a user may choose about decoding, checked against the model before any work."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal

from models import DiffusionLM
from models.attention import AttentionKind, attention_kind
from models.experts import routers
from models.families import Family
from models.spec import CheckpointSpec, check_block_size, delete_insert_ids
from sample.choices import Choices, require, require_name
from sample.doors import Given, open_strategy, open_target
from sample.strategies import Choose, Strategy
from sample.targets import DREAM_TARGETS, Target
from sample.unmask import Rules

logger = logging.getLogger(__name__)
CacheMode = Literal["auto", "exact", "none", "prefix", "dual"]


@dataclass(frozen=True)
class SamplingConfig(Choices):
    """Decoding choices, those of `Choices` among them; `for_model` sets what depends on the model."""

    max_new_tokens: int = 256
    """Length of a response at most, in tokens."""
    block_size: int | None = None
    """Tokens of a block; None = the checkpoint's, under full attention 32."""
    steps_per_block: int | Sequence[int] | None = None
    """Denoising steps of a block: one number, or one a block (the last one holds for all further blocks); None = one
    token a step."""
    strategy: str | Strategy | Choose = "low_confidence_dynamic"
    """Which positions a step commits: a name of `sample.strategies.STRATEGIES`, path/to/file.py:name, or your own
    `Strategy`, or its function f(proposal, masked_nb, k_n, choices) -> bool [n, b]."""
    target: str | Target | Any = "confidence"
    """The score that ranks positions: a name of `sample.targets.TARGETS` or `DREAM_TARGETS`, path/to/file.py:name, or
    your own `Target`, or its function f(candidates) -> [N]."""
    strategy_params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Keyword arguments of your own strategy."""
    target_params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Keyword arguments of your own target."""
    cache: CacheMode = "auto"
    """exact (block families) or none (full recompute); under full attention also prefix and dual, approximate: a
    block's first call sees everything, later ones only the block and, prefix, what is right of it, against frozen keys
    and values of the rest (prefix: the left only). auto = exact, or none under full attention."""
    further_horizon: int | None = None
    """prefix: tokens right of the block that later calls run and see; None = to the end."""
    output: Literal["text", "image"] = "text"
    """image: a picture of max_new_tokens codes, for prompts of `model.drawing_prompt`: one block, whose steps follow
    the cosine. Codes alone are drawn, and confidence is among them; alg_temp is noise on log confidence that fades to 0
    with the last step."""
    guidance: float = 0.0
    """Of pictures: codes are drawn from the logits (1 + guidance) conditional - guidance unconditional, which costs a
    second forward a step."""
    stop_ids: Sequence[int] | None = None
    """Ids that end a response; None = model.eos_ids, empty = never stop."""
    final_temperature: float | None = None
    """Of canvases (DiffusionGemma): the temperature falls evenly over the steps of a canvas, from `temperature` towards
    this; None = it stays."""
    stable_steps: int = 1
    """Of canvases: one may end before its last step when its likeliest tokens have not changed in so many steps and
    their mean entropy is below `settled_entropy`."""
    settled_entropy: float = 0.005
    """Of canvases: nats, see `stable_steps`; 0 = all steps are taken."""
    early_stop: bool = True
    """Decoding ends with the block that holds a stop id; False: at max_new_tokens. The response is cut at the first
    stop id either way."""
    seed: int = 0
    """Randomness is a hash of (seed, key, position, step)."""
    max_slots: int = 32
    """Sequences decoded at a time."""
    graphs: Literal["auto", "off"] = "auto"
    """auto: on a GPU a step is captured once a shape and replayed, with an exact cache; off: operation by operation."""
    attention: Literal["auto", "flex", "sdpa"] = "auto"
    """flex: FlexAttention, compiled, which reads a slot's own keys only; sdpa: torch's attention under masks; auto:
    flex on a GPU, sdpa on a CPU."""
    fuse_commit: bool = True
    """A finished block is committed in the forward that denoises the next one."""
    record_routing: bool = False
    """Rollouts of a mixture keep the experts of every token in every forward (exact cache; slower)."""
    deterministic: bool = False
    """Fixed shapes (all slots, whole cache), so that the same prompts give the same bits in any order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        require(self.block_size is None or self.block_size >= 1, "block_size", self.block_size, "at least 1")
        steps = self.steps_per_block if self.steps_per_block is not None else 1
        steps = [steps] if isinstance(steps, int) else list(steps)
        enough = bool(steps) and all(s >= 1 for s in steps)
        require(enough, "steps_per_block", self.steps_per_block, "at least 1 step a block")
        if isinstance(self.target, str):
            object.__setattr__(self, "target", DREAM_TARGETS.get(self.target, self.target))
        self.rules()
        require_name("cache", self.cache, ("auto", "exact", "none", "prefix", "dual"))
        require_name("graphs", self.graphs, ("auto", "off"))
        require_name("attention", self.attention, ("auto", "flex", "sdpa"))
        require_name("output", self.output, ("text", "image"))
        require(self.guidance >= 0.0, "guidance", self.guidance, "at least 0")
        for name in ("edit_threshold", "remask_threshold"):
            value = getattr(self, name)
            require(self.output == "text" or value is None, name, value, "null for pictures: it is of text")
        require(self.output == "image" or not self.guidance, "guidance", self.guidance, "0 for text: it is of pictures")
        ranked = not self.alg_temp or self.output == "text" or self.target == "confidence"
        require(ranked, "alg_temp", self.alg_temp, "0 for pictures that are ranked by another target than confidence")
        horizon = self.further_horizon
        require(horizon is None or horizon >= 0, "further_horizon", horizon, "at least 0 (null = to the end)")
        final, hot = self.final_temperature, self.temperature
        require(
            final is None or 0.0 < final <= hot, "final_temperature", final, f"above 0, at most temperature ({hot})"
        )
        require(self.stable_steps >= 0, "stable_steps", self.stable_steps, "at least 0")
        require(self.settled_entropy >= 0.0, "settled_entropy", self.settled_entropy, "at least 0")
        require(self.max_slots >= 1, "max_slots", self.max_slots, "at least 1")

    @property
    def changed(self) -> list[str]:
        """Fields that have another value than their default."""
        defaults = {item.name: item.default for item in fields(self) if item.default is not MISSING}
        return [name for name, default in defaults.items() if getattr(self, name) != default]

    def rules(self, threshold_passes: bool = False) -> Rules:
        """What a step goes by. threshold_passes: the family's reading of the threshold. ValueError where strategy or
        target is none."""
        strategy = Given("sampling strategy", self.strategy, self.strategy_params, "strategy_params")
        target = Given("sampling target", self.target, self.target_params, "target_params")
        return Rules(self, open_strategy(strategy, self).of_family(threshold_passes), open_target(target))

    def kind_on(self, model: DiffusionLM) -> AttentionKind:
        """The attention that the model decodes with. ValueError where it is asked for and cannot run."""
        return attention_kind(self.attention, model.device)

    def for_model(self, model: DiffusionLM) -> "SamplingConfig":
        """The same choices with every None that depends on the model filled in. ValueError where model and choice do
        not fit."""
        if self.output == "image":
            return self._of_a_picture(model)
        own = check_canvases(self, model.spec)
        if own and (ignored := [name for name in self.changed if name in _NOT_OF_CANVASES]):
            logger.warning("%s: no part of decoding canvases (%s)", ", ".join(ignored), model.family)
        block_size = model.spec.family.decoding_block_size(self.block_size, model.block_size, self.max_new_tokens)
        check_block_size(model.spec, block_size)
        cache = cache_of(self.cache, model.spec.family)
        check_edits(self.edit_threshold, model.spec.family)
        moves = moving_ids(self.edit_threshold, model.spec)
        check_remasks(self.remask_threshold, moves)
        if self.record_routing:
            check_routing(cache, bool(routers(model)), self.fuse_commit, "record_routing=True")
        self.kind_on(model)
        if self.further_horizon is not None and self.cache != "prefix":
            raise ValueError(
                f"further_horizon={self.further_horizon} is the window of cache 'prefix'; the cache is {self.cache!r}."
            )
        vocab_size = int(model.hf_config.vocab_size)
        for name, ids in (("stop_ids", self.stop_ids or ()), ("pad_id", () if self.pad_id is None else (self.pad_id,))):
            require(all(0 <= i < vocab_size for i in ids), name, ids, f"ids of the vocabulary, 0 to {vocab_size - 1}")
        pad_id = self.pad_id if self.pad_id is not None else model.pad_id
        return replace(
            self,
            block_size=block_size,
            steps_per_block=self.steps_per_block if self.steps_per_block is not None else own or block_size,
            cache=cache,
            stop_ids=tuple(model.eos_ids if self.stop_ids is None else self.stop_ids),
            pad_id=pad_id,
            delete_insert_ids=moves,
        )

    def _of_a_picture(self, model: DiffusionLM) -> "SamplingConfig":
        """As `for_model`, for pictures. ValueError where the model draws none, or blocks divide the picture."""
        size, steps = self.max_new_tokens, self.steps_per_block
        default_steps = model.need_drawing().steps
        if self.block_size not in (None, size):
            raise ValueError(
                f"block_size={self.block_size} divides a picture of {size} codes, which is one block: leave it out."
            )
        steps = list(steps)[0] if isinstance(steps, Sequence) else steps
        return replace(
            self,
            block_size=size,
            steps_per_block=min(size, steps or default_steps),
            cache=cache_of(self.cache, model.spec.family),
            stop_ids=(),
        )


CANVAS_STEPS = 48
"""Of a canvas, where neither the config nor the checkpoint's generation_config.json names a number: transformers'."""
_OF_CANVASES = ("final_temperature", "stable_steps", "settled_entropy")
_NOT_OF_CANVASES = (
    *("target", "target_params", "strategy_params", "threshold", "alg_temp", "pad_target_penalty", "confidence"),
    *("graphs", "attention", "fuse_commit", "further_horizon"),
)


def check_canvases(config: SamplingConfig, spec: CheckpointSpec) -> int | None:
    """Steps of a canvas that the checkpoint has as default; None for a family of masks. ValueError where the choices
    are not of the family's kind."""
    changed = config.changed
    if spec.family.noise == "mask":
        if wrong := [name for name in changed if name in _OF_CANVASES]:
            raise ValueError(f"{wrong[0]}={getattr(config, wrong[0])} is of canvases (DiffusionGemma): leave it out.")
        return None
    check_block_size(spec, config.block_size or spec.block_size)
    if config.strategy != "entropy_bounded":
        raise ValueError(
            f"strategy={config.strategy!r}: {spec.family.name} has canvases, which are denoised by entropy. Set "
            f"{_as_published(spec.generation)}."
        )
    if not isinstance(config.steps_per_block, int | None):
        raise ValueError(f"steps_per_block={config.steps_per_block}: all canvases have one number of steps; give one.")
    for name in ("edit_threshold", "remask_threshold", "record_routing"):
        if name in changed:
            raise ValueError(f"{name}={getattr(config, name)}: there is no such rule for canvases. Leave it out.")
    return spec.generation.get("max_denoising_steps") or CANVAS_STEPS


def decoding_of(given: Mapping[str, Any], spec: CheckpointSpec) -> dict[str, Any]:
    """strategy, entropy_bound, temperature and final_temperature, the checkpoint's or the default where None is given.

    Canvases without a strategy are decoded as published: as generation_config.json has it, the final temperature at
    most the given temperature. All else has the defaults of `SamplingConfig`, but temperature 1.
    """
    canvases = spec.family.noise == "uniform" and given["strategy"] is None
    own = _published(spec.generation) if canvases else dict(zip(_PUBLISHED, _USUAL, strict=True))
    chosen = {name: own[name] if given[name] is None else given[name] for name in _PUBLISHED}
    if given["final_temperature"] is None and own["final_temperature"] is not None:
        chosen["final_temperature"] = min(own["final_temperature"], chosen["temperature"]) or None
    return chosen


_PUBLISHED = ("strategy", "entropy_bound", "temperature", "final_temperature")
_USUAL: tuple[Any, ...] = (SamplingConfig.strategy, SamplingConfig.entropy_bound, 1.0, None)


def _published(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of a checkpoint's generation_config.json, with transformers' where it has none."""
    bound = (generation.get("sampler_config") or {}).get("entropy_bound", 0.1)
    values = ("entropy_bounded", bound, generation.get("t_max", 0.8), generation.get("t_min", 0.4))
    return dict(zip(_PUBLISHED, values, strict=True))


def _as_published(generation: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in _published(generation).items())


def check_routing(cache: str, has_routers: bool, fused: bool, key: str) -> None:
    """ValueError where a sampler cannot record experts. key: what the message calls the wish."""
    if not has_routers:
        raise ValueError(f"{key}: the model has no routers (it is no mixture of experts). Leave it out.")
    if cache != "exact" or not fused:
        raise ValueError(f"{key}: only the exact cache of block families, with fused commits, records experts.")


def check_edits(edit_threshold: float | None, family: Family, key: str = "edit_threshold") -> None:
    """ValueError where a family has no rule for edits. key: what the message calls it."""
    if edit_threshold is not None and family.attention == "full":
        raise ValueError(
            f"{key}={edit_threshold}: {family.name} has full attention, for which there is no rule for edits: they are "
            "of block families. Leave it out (null), or set remask_threshold: unsure tokens return to the mask."
        )


def moving_ids(edit_threshold: float | None, spec: CheckpointSpec) -> tuple[int, int] | None:
    """Ids of DELETE and INSERT, where a checkpoint has them and its tokens are edited."""
    return None if edit_threshold is None else delete_insert_ids(spec)


def check_remasks(
    remask_threshold: float | None, delete_insert_ids: tuple[int, int] | None, key: str = "remask_threshold"
) -> None:
    """ValueError where tokens are to be remasked that edits move, for which there is no rule. delete_insert_ids: None =
    no edit moves any. key: what the message calls the threshold."""
    if remask_threshold is not None and delete_insert_ids is not None:
        raise ValueError(
            f"{key}={remask_threshold}: edits of this model delete and insert tokens, for which there is no rule of "
            "remasking. Leave it out (null), or edit_threshold."
        )


def cache_of(requested: CacheMode, family: Family) -> CacheMode:
    """The cache that a family decodes with, `auto` decided. ValueError where it has none of that name."""
    full = family.attention == "full"
    if not full and requested in ("prefix", "dual"):
        raise ValueError(
            f"cache {requested!r} approximates full attention; {family.name} has an exact one: use auto or exact."
        )
    if full and requested == "exact":
        raise ValueError(f"cache 'exact' does not exist for {family.name} (full attention): use none, prefix or dual.")
    return requested if requested != "auto" else "none" if full else "exact"
