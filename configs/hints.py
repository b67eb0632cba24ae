"""Names that keys have elsewhere (arguments of transformers and TRL, verl, prime-rl, LLaDA's and Dream's scripts), for
messages about unknown keys."""

from collections.abc import Collection

_NUM_RESPONSES = ("num_generations", "n", "group_size", "rollouts_per_example", "samples_per_prompt", "num_samples")
_LENGTH = ("max_completion_length", "max_response_length", "gen_length", "max_tokens", "seq_len", "generation_length")
_TOTAL = ("total_training_steps", "num_training_steps", "total_steps", "num_steps", "training_steps", "total_epochs")
_MODEL = ("model_name_or_path", "model_path", "model_name", "pretrained_model_name_or_path", "checkpoint", "actor_path")
_PROJECT = ("run_name", "experiment_name", "exp_name", "project_name", "wandb_project", "job_name")
_RATE = ("lr", "learning_rate", "actor_lr", "policy_lr", "max_lr", "peak_lr")
_BATCH = (
    *("per_device_train_batch_size", "micro_batch_size", "micro_batch_size_per_gpu", "per_gpu_train_batch_size"),
    *("ppo_micro_batch_size", "ppo_micro_batch_size_per_gpu", "train_micro_batch_size_per_gpu"),
)
_UPDATE = ("ppo_mini_batch_size", "mini_batch_size", "global_batch_size", "effective_batch_size")
_KL = ("kl_coef", "kl_loss_coef", "init_kl_coef", "kl_weight", "kl_penalty", "kl_beta")
_CLIP = ("epsilon", "clip_ratio", "cliprange", "clip_range", "clip_eps", "eps_clip", "epsilon_high", "clip_ratio_high")
_ADAPTER = ("lora_r", "lora_rank", "use_peft", "use_lora", "peft_type")

ELSEWHERE: dict[str, tuple[str, ...]] = {
    # rollouts
    **dict.fromkeys(_NUM_RESPONSES, ("rollout.num_response_per_task",)),
    **dict.fromkeys(_LENGTH, ("rollout.max_new_tokens",)),
    **dict.fromkeys(("max_prompt_length", "max_prompt_tokens", "prompt_length"), ("training.max_prompt_len",)),
    **dict.fromkeys(
        ("max_seq_length", "max_seq_len", "max_length"), ("training.max_prompt_len", "training.max_gen_length")
    ),
    "train_batch_size": ("rollout.num_task_per_step", "training.batch_size_lm"),
    **dict.fromkeys(
        ("generation_batch_size", "prompts_per_step", "rollout_batch_size"), ("rollout.num_task_per_step",)
    ),
    **dict.fromkeys(("block_length", "bd_size"), ("rollout.block_size",)),
    **dict.fromkeys(
        ("diffusion_steps", "denoising_steps", "num_inference_steps"), ("rollout.steps", "rollout.steps_per_block")
    ),
    **dict.fromkeys(("remasking", "alg"), ("rollout.strategy", "rollout.target")),
    **dict.fromkeys(("gpu_memory_utilization", "max_num_seqs"), ("rollout.max_slots",)),
    "do_sample": ("rollout.temperature",),
    # length of the run, saving, evaluating
    "max_steps": ("experiment.total_step", "training.max_steps"),
    **dict.fromkeys(_TOTAL, ("experiment.total_step", "training.num_train_epochs")),
    **dict.fromkeys(("num_epochs", "epochs", "num_iterations", "ppo_epochs"), ("training.num_train_epochs",)),
    **dict.fromkeys(("save_steps", "save_freq", "save_interval", "checkpointing_steps"), ("experiment.save_every",)),
    **dict.fromkeys(("save_total_limit", "max_ckpt_to_keep", "keep_last_n"), ("experiment.keep_last",)),
    "load_best_model_at_end": ("experiment.keep_best",),
    **dict.fromkeys(("eval_steps", "test_freq", "eval_interval", "eval_freq"), ("experiment.eval_every",)),
    **dict.fromkeys(("eval_on_start", "val_before_train"), ("experiment.eval_first",)),
    **dict.fromkeys(("resume_from_checkpoint", "resume_mode", "resume_path"), ("experiment.resume",)),
    "overwrite_output_dir": ("experiment.overwrite",),
    **dict.fromkeys(_PROJECT, ("experiment.project",)),
    **dict.fromkeys(("log_completions", "logging_completions", "log_samples"), ("tracking.sample_every",)),
    **dict.fromkeys(("logger", "use_wandb", "with_tracking"), ("tracking.report_to",)),
    # models, data, rewards
    **dict.fromkeys(_MODEL, ("model.pretrained_model",)),
    **dict.fromkeys(
        ("dataset_name", "dataset_path", "train_files", "train_file"),
        ("dataset.train_dataset", "dataset.optimization_data"),
    ),
    **dict.fromkeys(("val_files", "val_file", "val_dataset", "test_files", "eval_file"), ("evaluation.eval_dataset",)),
    **dict.fromkeys(("prompt_key", "dataset_text_field", "prompt_column", "input_key"), ("dataset.columns",)),
    **dict.fromkeys(("chat_template", "prompt_template", "apply_chat_template"), ("dataset.template",)),
    **dict.fromkeys(("system_prompt", "system_message", "system_instruction"), ("dataset.system",)),
    **dict.fromkeys(("num_fewshot", "fewshot", "n_shot", "few_shots"), ("dataset.few_shot",)),
    **dict.fromkeys(("reward_funcs", "reward_function", "reward_fn", "custom_reward_function"), ("reward.function",)),
    "reward_weights": ("reward.weights",),
    **dict.fromkeys(("reward_model", "reward_model_path"), ("judge.local", "reward.function")),
    **dict.fromkeys(("actor.path", "actor.model", "model.path", "model.name"), ("model.pretrained_model",)),
    **dict.fromkeys(("custom_reward_function.path", "reward.path"), ("reward.function",)),
    # objective
    **dict.fromkeys(_KL, ("training.beta",)),
    **dict.fromkeys(_CLIP, ("training.eps",)),
    **dict.fromkeys(("gamma", "discount"), ("training.gam",)),
    **dict.fromkeys(("gae_lambda", "lambda"), ("training.lam",)),
    **dict.fromkeys(("loss_type", "loss_agg_mode", "loss_reduction"), ("training.normalization", "training.objective")),
    **dict.fromkeys(("scale_rewards", "adv_estimator", "norm_adv_by_std_in_grpo"), ("training.advantage",)),
    **dict.fromkeys(("mask_truncated_completions", "overlong_filter", "mask_overlong"), ("training.truncated",)),
    # optimizer, precision, machines
    **dict.fromkeys(_RATE, ("optimizer.params.learning_rate",)),
    "critic_lr": ("optimizer.params.value_learning_rate",),
    **dict.fromkeys(("adam_beta1", "adam_beta_1"), ("optimizer.params.beta1",)),
    **dict.fromkeys(("adam_beta2", "adam_beta_2"), ("optimizer.params.beta2",)),
    "betas": ("optimizer.params.beta1", "optimizer.params.beta2"),
    **dict.fromkeys(("adam_epsilon", "adam_eps"), ("optimizer.params.epsilon",)),
    "wd": ("optimizer.params.weight_decay",),
    **dict.fromkeys(("optim", "optimizer_type"), ("optimizer.name",)),
    **dict.fromkeys(
        ("warmup_ratio", "lr_warmup_steps", "lr_warmup_steps_ratio", "num_warmup_steps"),
        ("lr_scheduler.params.warmup_steps",),
    ),
    **dict.fromkeys(
        ("lr_scheduler_type", "lr_schedule", "lr_decay_style", "warmup_style"), ("lr_scheduler.scheduler",)
    ),
    **dict.fromkeys(("min_lr", "min_lr_ratio", "min_lr_rate"), ("lr_scheduler.params.min_lr_scale",)),
    **dict.fromkeys(
        ("grad_clip", "clip_grad", "gradient_clipping", "gradient_clip_val", "max_norm"), ("training.max_grad_norm",)
    ),
    **dict.fromkeys(_BATCH, ("training.batch_size_lm",)),
    **dict.fromkeys(_UPDATE, ("training.rows_per_update",)),
    **dict.fromkeys(
        ("ppo_max_token_len_per_gpu", "max_tokens_per_gpu", "max_token_len"), ("training.max_tokens_per_microbatch",)
    ),
    **dict.fromkeys(
        ("gradient_checkpointing", "activation_checkpointing"), ("training.gradient_checkpointing_enable",)
    ),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype", "precision"), ("training.mixed_precision",)),
    "tf32": ("training.enable_tf32",),
    **dict.fromkeys(_ADAPTER, ("lora.rank",)),
    "lora_alpha": ("lora.alpha",),
    "lora_dropout": ("lora.dropout",),
    "lora_target_modules": ("lora.target_modules",),
    **dict.fromkeys(
        ("n_gpus_per_node", "nproc_per_node", "num_processes", "num_gpus", "n_gpus"), ("experiment.processes",)
    ),
    **dict.fromkeys(("nnodes", "num_nodes", "num_machines"), ("experiment.num_node",)),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "zero_stage"), ("experiment.deepspeed_file",)),
    **dict.fromkeys(("data_seed", "random_seed"), ("training.seed",)),
}
"""Name, in small letters, with its section where it says little without -> keys."""

_EVERY_STEP = "Every step is logged to metrics.jsonl."
NOTES: dict[str, str] = {
    **dict.fromkeys(("logging_steps", "log_interval", "log_every", "log_freq", "logging_first_step"), _EVERY_STEP),
    **dict.fromkeys(
        ("use_vllm", "vllm_mode", "tensor_model_parallel_size"), "The sampler shares the trainer's devices."
    ),
}
"""Name, in small letters -> what takes the place of a key that has none here."""


def keys_for(name: str, known: Collection[str]) -> list[str]:
    """The keys here of what is called `name` elsewhere, most likely first; in the section that was typed where it has
    such a key."""
    section, _, last = name.lower().replace("-", "_").rpartition(".")
    found = ELSEWHERE.get(f"{section.rpartition('.')[2]}.{last}", ()) or ELSEWHERE.get(last, ())
    there = [f"{section}.{key.rpartition('.')[2]}" for key in found]
    return [key for key in there if key in known] or list(found)


def note_for(name: str) -> str:
    """What there is in place of a key of that name, "" where nothing is known."""
    return NOTES.get(name.lower().replace("-", "_").rpartition(".")[2], "")
