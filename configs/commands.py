"""Which keys a command does not read: an error where one is typed, a warning where it stands in a YAML."""

from collections.abc import Collection, Mapping
from typing import Literal

from configs.schema import Effect

Command = Literal["rl", "sft", "eval"]
TITLES: dict[Command, str] = {"rl": "rl.py", "sft": "train/sft.py", "eval": "eval.py"}

_RL_ALONE = (
    "experiment.total_step",
    "experiment.train_value_every",
    "experiment.keep_best",
    "model.value_base_model",
    "model.optimized_value_name",
    "model.prepare_with",
    "dataset.train_dataset",
    "dataset.curriculum",
    "rollout.num_task_per_step",
    "rollout.refill_draws",
    "training.objective",
    "training.objective_params",
    "training.advantage",
    "training.advantage_params",
    "training.whiten_advantages",
    "training.rows_per_response",
    "training.rows_by",
    "training.trained_events",
    "training.replay_routing",
    "training.eps",
    "training.eps_low",
    "training.eps_high",
    "training.dual_clip",
    "training.nll_weight",
    "training.beta",
    "training.kl_estimator",
    "training.kl_to",
    "training.gam",
    "training.lam",
    "training.min_accuracy",
    "training.max_accuracy",
    "training.truncated",
    "training.logp_old",
    "training.rollout_correction",
    "training.rollout_correction_level",
    "training.rollout_correction_limit",
    "training.rollout_rejection",
    "training.rollout_rejection_low",
    "training.rollout_rejection_high",
    "optimizer.params.value_learning_rate",
    "tracking.sample_every",
    "evaluation",
)
_SFT_ALONE = (
    *("dataset.optimization_data", "dataset.validation_dataset", "dataset.validation_split"),
    *("dataset.sample_with", "dataset.traces_per_task", "dataset.pairs_per_task"),
    *("experiment.save_every_updates", "training.max_steps", "training.replaced_p", "training.unmasked_p"),
    *("training.sft_objective", "training.dpo_beta"),
)
_TRAINING_ALONE = (
    "experiment.eval_every",
    "experiment.eval_first",
    "experiment.early_stopping",
    "experiment.early_stopping_metric",
    "experiment.early_stopping_gain",
    "experiment.save_every",
    "experiment.save_dtype",
    "experiment.keep_last",
    "experiment.resume",
    "model.optimized_name",
    "training.method",
    "training.method_params",
    "training.block_size",
    "training.shrink",
    "training.post_num",
    "training.max_gen_length",
    "training.lower_p",
    "training.upper_p",
    "training.mask_times_per_sample",
    "training.loss_weight",
    "training.normalization",
    "training.rows_per_update",
    "training.gradient_accumulation_steps",
    "training.batch_size_lm",
    "training.num_train_epochs",
    "training.max_tokens_per_microbatch",
    "training.max_grad_norm",
    "training.ema_decay",
    "training.max_skipped_updates",
    "training.train_vision",
    "training.gradient_checkpointing_enable",
    "tracking.profile_steps",
    "lora",
    "optimizer",
    "lr_scheduler",
)
NOT_READ: dict[Command, tuple[str, ...]] = {
    "rl": (*_SFT_ALONE, "model.compared_with", "dataset.eval_dataset", "rollout.output_unmasking_history"),
    "sft": (
        *_RL_ALONE,
        "model.compared_with",
        "dataset.eval_dataset",
        "dataset.source_column",
        "dataset.data_type",
        "dataset.template",
        "dataset.few_shot",
        "dataset.add_think_prompt",
        "rollout",
        "reward",
        "judge",
        "execute",
    ),
    "eval": (
        *_RL_ALONE,
        *_TRAINING_ALONE,
        *_SFT_ALONE,
        "model.reference_model",
        "reward.combine",
        "reward.speed_weight",
        "reward.speed_goal",
        "reward.min_speed_spread",
    ),
}
"""Command -> keys, or whole sections, that it does not read."""
_MARKED_OTHERWISE: Mapping[tuple[Command, str], Effect] = {("sft", "training.num_train_epochs"): "length"}


def reads(command: Command, key: str) -> bool:
    """Whether a command reads a key of the schema."""
    return not any(key == name or key.startswith(f"{name}.") for name in NOT_READ[command])


def effect_in(command: Command | None, key: str, mark: Effect) -> Effect:
    """What another value of a key changes in a command, where that is not what the schema marks it with."""
    return mark if command is None else _MARKED_OTHERWISE.get((command, key), mark)


def unread(command: Command, keys: Collection[str], typed: Mapping[str, str]) -> list[str]:
    """Those of `keys` that a command does not read, as they were typed."""
    return [typed.get(key, key) for key in keys if not reads(command, key)]


def readers(key: str) -> str:
    """Which commands read a key, for people."""
    found = [TITLES[command] for command in NOT_READ if reads(command, key)]
    return f"{' and '.join(found) or 'no command'} {'do' if len(found) > 1 else 'does'}"
