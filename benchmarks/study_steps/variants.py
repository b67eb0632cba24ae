"""What benchmarks/study.py compares: tasks, and the kinds of run on each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

BASE = "trace"
"""The variant that the others are compared with."""
COMMON = ("experiment.keep_last=1", "lr_scheduler.params.min_lr_scale=0.1")


@dataclass(frozen=True)
class Task:
    """recipe, sft: YAMLs of configs/; steps: RL steps that take TraceRL at most 90 s of one core; questions: of an RL
    step, 8 responses each; blocks: sizes of a block that the study of blocks trains, none where attention is full;
    edits: its responses are decoded with edits, and it is of the stage `edits` alone; test_responses: to each question
    of the test; besides: what a variant sets on this task besides; sft_besides: what the SFT of a size of a block sets
    besides."""

    recipe: str
    sft: str
    steps: int
    questions: int
    block_size: int
    blocks: tuple[int, ...] = ()
    edits: bool = False
    test_responses: int = 8
    besides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sft_besides: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


_NO_SPEED_FILTER = {"lightning": ("reward.min_speed_spread=0.0",)}
"""For a first model that decides one token in every step: the filter would drop every group."""
_LONGER = (
    "training.num_train_epochs=66",
    "training.mask_times_per_sample=6",
    "training.max_tokens_per_microbatch=4096",
    "experiment.save_every=66",
)
"""For a block that holds most of the answer, or all of it: the recipe's 22 passes end at .02 there."""
TASKS: Mapping[str, Task] = {
    "sort": Task(
        "rl_tiny",
        "sft_tiny",
        steps=60,
        questions=48,
        block_size=4,
        blocks=(4, 8, 16, 32),
        sft_besides={16: _LONGER, 32: _LONGER},
    ),
    "addition": Task(
        "rl_tiny_addition",
        "sft_tiny_addition",
        steps=10,
        questions=48,
        block_size=8,
        blocks=(4, 8, 16),
        besides=_NO_SPEED_FILTER,
    ),
    "brackets": Task("rl_tiny_brackets", "sft_tiny_brackets", steps=14, questions=32, block_size=13, test_responses=4),
    "edits": Task("rl_tiny_edit", "sft_tiny_edit", steps=40, questions=32, block_size=4, edits=True),
}


@dataclass(frozen=True)
class Variant:
    """One kind of run; arguments: what it sets besides. blocks_only: it needs a block family. edit_questions: of the
    stage `edits` alone, questions of a step for about the packed tokens that TraceRL has with edits."""

    label: str
    arguments: tuple[str, ...] = ()
    blocks_only: bool = False
    edit_questions: int | None = None


_ELBO = "training.method=elbo"
_LIGHTNING = (
    "reward.speed_goal=apart",
    "reward.speed_weight=1.0",
    "reward.min_speed_spread=0.01",
    "training.advantage=zscore",
    "training.whiten_advantages=true",
    "training.min_accuracy=0.01",
    "training.normalization=response_mean",
    "training.beta=0.01",
    "training.kl_to=reference",
    "training.nll_weight=1.0",
)
_NO_EDITS = ("rollout.edit_threshold=null", "evaluation.edit_threshold=null")
VARIANTS: Mapping[str, Variant] = {
    BASE: Variant("TraceRL"),
    "random2": Variant(
        "random masking, two masks", ("training.method=random_masking", "training.mask_times_per_sample=2")
    ),
    "coupled": Variant("coupled, one pair of masks", ("training.method=coupled",)),
    "elbo": Variant("elbo, one pair of masks", (_ELBO,)),
    "ar_order": Variant("ar_order", ("training.method=ar_order", "rollout.strategy=sequential")),
    "mean_field": Variant("mean_field", ("training.method=mean_field",)),
    "clip_higher": Variant("clip, eps_high 0.28", ("training.eps_high=0.28",)),
    "reinforce": Variant("reinforce", ("training.objective=reinforce",)),
    "wd1": Variant("wd1: reinforce, advantage wd1", ("training.objective=reinforce", "training.advantage=wd1")),
    "nll": Variant("clip + the likelihood of right traces", ("training.nll_weight=1.0",)),
    "gspo": Variant("gspo, eps 0.02", ("training.objective=gspo", "training.eps=0.02")),
    "espo": Variant("espo, elbo, eps 0.02", ("training.objective=espo", _ELBO, "training.eps=0.02")),
    "ebpo": Variant("ebpo, elbo", ("training.objective=ebpo", _ELBO), blocks_only=True),
    "bgpo": Variant("bgpo, elbo", ("training.objective=bgpo", _ELBO)),
    "spg": Variant("spg, elbo, two pairs", ("training.objective=spg", _ELBO, "training.mask_times_per_sample=2")),
    "stabledrl": Variant("stabledrl", ("training.objective=stabledrl",)),
    "gdsd": Variant("gdsd", ("training.objective=gdsd",)),
    "zscore": Variant("advantage zscore", ("training.advantage=zscore",)),
    "leave_one_out": Variant("advantage leave_one_out", ("training.advantage=leave_one_out",)),
    "rank": Variant("advantage rank", ("training.advantage=rank",)),
    "shrink": Variant("shrink 2", ("training.shrink=2",)),
    "kl": Variant("KL to the first model, beta 0.1", ("training.kl_to=reference", "training.beta=0.1")),
    "value": Variant(
        "value model",
        ("model.value_base_model=${model.pretrained_model}", "optimizer.params.value_learning_rate=1.0e-3"),
    ),
    "lora": Variant("LoRA of rank 16, rate 1e-3", ("lora.rank=16", "optimizer.params.learning_rate=1.0e-3")),
    "lightning": Variant("LightningRL's additions", _LIGHTNING),
    "no_edits": Variant("TraceRL without edits", _NO_EDITS, edit_questions=32),
    "edits_any": Variant(
        "TraceRL, every other draw is an edit (edit_threshold 0)",
        ("rollout.edit_threshold=0.0", "evaluation.edit_threshold=0.0"),
        edit_questions=32,
    ),
    "edits_ebpo": Variant("ebpo, elbo", ("training.objective=ebpo", _ELBO), edit_questions=36),
}
EDIT_VARIANTS = (BASE, "no_edits", "edits_any", "edits_ebpo")
