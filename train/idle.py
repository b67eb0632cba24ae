"""Warnings that name keys which are set and have no effect beside the others."""

import logging
from collections.abc import Sequence
from dataclasses import asdict

from configs.commands import Command
from configs.schema import Config, DatasetConfig, DecodeConfig, LoraSection, TrainingConfig
from data.tasks import Example
from runtime.doors import is_file_target
from train.algorithm.masking import Method

logger = logging.getLogger(__name__)

_WITHOUT_LEVELS = ("elbo", "ar_order", "mean_field", "ar")
"""Methods that draw masks without a noise level, or none."""


def warn_of_idle_adapters(config: Config) -> None:
    """Of the lora section, where no adapters are trained."""
    idle = [f"lora.{key}={value}" for key, value in asdict(config.lora).items() if value != getattr(LoraSection(), key)]
    if idle and not config.lora.rank:
        logger.warning("%s: no effect while lora.rank is 0; set it to train adapters", ", ".join(idle))


def warn_of_idle_steps(config: Config, method: Method) -> None:
    """Of the training section, where masks are drawn at random: no step is merged, and no overwritten token trained. A
    value model reads the sampled steps under any method, and a user's own method may read any key."""
    training, plain = config.training, TrainingConfig()
    if method.as_sampled or is_file_target(training.method):
        return
    names = ["trained_events"] if config.model.value_base_model else ["shrink", "trained_events"]
    for name in names:
        if getattr(training, name) != getattr(plain, name):
            logger.warning(
                "training.%s=%s has no effect: training.method=%s does not train the steps of a response",
                *(name, getattr(training, name), training.method),
            )


def warn_of_idle_noise(training: TrainingConfig, command: Command) -> None:
    """Of the training section, what no mask is drawn by."""
    plain = TrainingConfig()
    if training.method in _WITHOUT_LEVELS:
        for name in ("lower_p", "upper_p", "loss_weight"):
            if (value := getattr(training, name)) != getattr(plain, name):
                logger.warning(
                    "training.%s=%s has no effect: training.method=%s draws no noise level",
                    *(name, value, training.method),
                )
    if command == "sft" and training.unmasked_p != plain.unmasked_p and not training.replaced_p:
        logger.warning("training.unmasked_p=%s has no effect: set training.replaced_p", training.unmasked_p)


def warn_of_idle_correction(training: TrainingConfig) -> None:
    """Of the training section, where no rollout correction or rejection reads the key."""
    plain = TrainingConfig()
    read_by = {
        "rollout_correction": ("rollout_correction_level", "rollout_correction_limit"),
        "rollout_rejection": ("rollout_rejection_low", "rollout_rejection_high"),
    }
    for switch, names in read_by.items():
        for name in names if getattr(training, switch) == "none" else ():
            if (value := getattr(training, name)) != getattr(plain, name):
                logger.warning("training.%s=%s has no effect: set training.%s", name, value, switch)


def warn_of_idle_credit(config: Config) -> None:
    """Of rewards and advantages, under an objective that learns from a teacher."""
    plain, given = Config(), {"reward": config.reward, "training": config.training, "rollout": config.rollout}
    idle = [
        f"{section}.{name}={getattr(given[section], name)}"
        for section, names in _OF_CREDIT.items()
        for name in names
        if getattr(given[section], name) != getattr(getattr(plain, section), name)
    ]
    if idle:
        logger.warning(
            "training.objective=%s learns from its teacher alone: no effect of %s",
            *(config.training.objective, ", ".join(idle)),
        )


_OF_CREDIT = {
    "reward": ("combine", "speed_goal", "speed_weight", "min_speed_spread"),
    "training": ("advantage", "whiten_advantages", "min_accuracy", "max_accuracy"),
    "rollout": ("refill_draws",),
}
"""Keys that decide what a response is worth, and which groups are trained."""


def warn_of_idle_pairs(config: Config, examples: Sequence[Example]) -> None:
    """Of dataset.pairs_per_task under DPO, where files have pairs and none is made."""
    count, plain = config.dataset.pairs_per_task, DatasetConfig().pairs_per_task
    if (
        count not in (plain, None)
        and config.training.sft_objective == "dpo"
        and not any(example.trace for example in examples)
    ):
        logger.warning("dataset.pairs_per_task=%s has no effect: every row is a pair already", count)


def warn_of_idle_revision(decode: DecodeConfig) -> None:
    """Of a section of decoding, where nothing is overwritten or masked again."""
    edits = decode.edit_threshold if isinstance(decode.edit_threshold, list) else [decode.edit_threshold]
    remasks, plain = decode.remask_threshold is not None, type(decode)()
    edit, remask = decode.key("edit_threshold"), decode.key("remask_threshold")
    needed = {"max_post_steps": f"{edit} or {remask}", "remask_budget": remask}
    works = {"max_post_steps": remasks or any(edit is not None for edit in edits), "remask_budget": remasks}
    for name, thresholds in needed.items():
        if not works[name] and getattr(decode, name) != getattr(plain, name):
            logger.warning("%s=%s has no effect: set %s", decode.key(name), getattr(decode, name), thresholds)


def warn_of_idle_bound(decode: DecodeConfig) -> None:
    """Of a section of decoding, where no strategy goes by entropy. A user's own strategy may read the bound."""
    bound = decode.entropy_bound
    strategies = decode.strategy if isinstance(decode.strategy, list) else [decode.strategy]
    reads = any(name == "entropy_bounded" or is_file_target(name) for name in strategies)
    if not reads and bound != type(decode)().entropy_bound:
        key, strategy = decode.key("entropy_bound"), decode.key("strategy")
        logger.warning("%s=%s has no effect: set %s=entropy_bounded", key, bound, strategy)
