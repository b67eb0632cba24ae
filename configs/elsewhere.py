"""What keys are called elsewhere: TRL (and transformers' TrainingArguments), verl, and others (prime-rl, OpenRLHF, the
scripts of LLaDA, Dream and d1). Messages about unknown keys and docs/from_trl_verl.md come from this table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """keys: ours, most likely first, separated by blanks, as the names elsewhere are. note: what differs, or where
    there is no key what takes its place."""

    keys: str
    trl: str = ""
    verl: str = ""
    others: str = ""
    note: str = ""

    @property
    def names(self) -> list[str]:
        return f"{self.trl} {self.verl} {self.others}".split()


_ROLLOUT = "actor_rollout_ref.rollout"
_ACTOR = "actor_rollout_ref.actor"

TABLE: dict[str, tuple[Named, ...]] = {
    "Rollouts": (
        Named(
            "rollout.num_response_per_task",
            trl="num_generations",
            verl=f"{_ROLLOUT}.n",
            others="n group_size rollouts_per_example samples_per_prompt n_samples_per_prompt num_samples",
        ),
        Named(
            "evaluation.num_response_per_task",
            trl="num_generations_eval",
            verl=f"{_ROLLOUT}.val_kwargs.n",
            others="eval_n",
        ),
        Named(
            "rollout.num_task_per_step",
            trl="generation_batch_size",
            others="prompts_per_step rollout_batch_size",
            note="tasks, not responses",
        ),
        Named(
            "rollout.num_task_per_step training.batch_size_lm",
            verl="data.train_batch_size",
            others="train_batch_size",
            note="verl counts prompts, transformers rows",
        ),
        Named(
            "rollout.max_new_tokens",
            trl="max_completion_length",
            verl="data.max_response_length",
            others="gen_length generation_length max_tokens seq_len max_response_length",
        ),
        Named(
            "training.max_prompt_len",
            trl="max_prompt_length",
            verl="data.max_prompt_length",
            others="max_prompt_tokens prompt_length",
        ),
        Named(
            "training.max_prompt_len training.max_gen_length",
            trl="max_seq_length max_length",
            others="max_seq_len cutoff_len",
            note="prompt and response have a limit each",
        ),
        Named("dataset.over_long_prompts", verl="data.filter_overlong_prompts data.truncation"),
        Named("rollout.temperature", trl="temperature", verl=f"{_ROLLOUT}.temperature", others="do_sample"),
        Named("evaluation.temperature", verl=f"{_ROLLOUT}.val_kwargs.temperature"),
        Named("rollout.block_size", others="block_length bd_size"),
        Named("rollout.steps rollout.steps_per_block", others="diffusion_steps denoising_steps num_inference_steps"),
        Named("rollout.strategy rollout.target", others="remasking alg"),
        Named("rollout.edit_threshold", others="editing_threshold"),
        Named("rollout.cache", others="use_cache_dual dual_cache use_block_cache"),
        Named(
            "rollout.max_slots",
            trl="vllm_gpu_memory_utilization",
            verl=f"{_ROLLOUT}.gpu_memory_utilization {_ROLLOUT}.max_num_seqs",
            others="gpu_memory_utilization max_num_seqs max_num_batched_tokens",
            note="sequences at a time; left out, what fits",
        ),
        Named("rollout.graphs", verl=f"{_ROLLOUT}.enforce_eager", others="enforce_eager"),
        Named(
            "rollout.tensor_parallel_size",
            trl="vllm_tensor_parallel_size",
            verl=f"{_ROLLOUT}.tensor_model_parallel_size",
            others="tensor_model_parallel_size",
        ),
        Named(
            "rollout.refill_draws", verl="algorithm.filter_groups.enable algorithm.filter_groups.max_num_gen_batches"
        ),
    ),
    "Objective": (
        Named(
            "training.beta",
            trl="beta",
            verl=f"{_ACTOR}.kl_loss_coef algorithm.kl_ctrl.kl_coef {_ACTOR}.use_kl_loss",
            others="kl_coef kl_loss_coef init_kl_coef kl_weight kl_beta use_kl_loss",
            note="0 is no penalty",
        ),
        Named(
            "training.kl_estimator",
            verl=f"{_ACTOR}.kl_loss_type algorithm.kl_penalty",
            others="kl_loss_type kl_penalty",
        ),
        Named("training.dpo_beta", others="pref_beta dpo_beta"),
        Named("training.kl_to", trl="sync_ref_model"),
        Named(
            "model.reference_model training.kl_to", trl="ref_model teacher_model_name_or_path", others="ref_model_path"
        ),
        Named(
            "training.eps",
            trl="epsilon",
            verl=f"{_ACTOR}.clip_ratio critic.cliprange_value",
            others="clip_ratio cliprange clip_range clip_eps eps_clip cliprange_value",
        ),
        Named("training.eps_low", verl=f"{_ACTOR}.clip_ratio_low", others="clip_ratio_low epsilon_low eps_clip_low"),
        Named(
            "training.eps_high",
            trl="epsilon_high",
            verl=f"{_ACTOR}.clip_ratio_high",
            others="clip_ratio_high eps_clip_high",
        ),
        Named("training.dual_clip", trl="delta", verl=f"{_ACTOR}.clip_ratio_c", others="clip_ratio_c"),
        Named(
            "training.normalization training.objective",
            trl="loss_type",
            verl=f"{_ACTOR}.loss_agg_mode",
            others="loss_agg_mode loss_reduction",
            note="dapo, token-mean: `token_mean`; grpo, seq-mean-token-mean: `response_mean`; dr_grpo: `constant`",
        ),
        Named(
            "training.objective",
            trl="importance_sampling_level",
            verl=f"{_ACTOR}.policy_loss.loss_mode",
            others="loss_mode policy_loss_fn",
            note="`gspo` has one ratio a response",
        ),
        Named(
            "training.advantage",
            trl="scale_rewards",
            verl="algorithm.adv_estimator algorithm.norm_adv_by_std_in_grpo",
            others="adv_estimator advantage_estimator norm_adv_by_std_in_grpo",
            note="`zscore` divides by the spread, `centered` does not, `leave_one_out` is rloo",
        ),
        Named("training.whiten_advantages", others="whiten_rewards normalize_advantage advantage_norm"),
        Named("training.gam", verl="algorithm.gamma", others="gamma discount"),
        Named("training.lam", verl="algorithm.lam", others="gae_lambda lambda lambd"),
        Named(
            "training.truncated",
            trl="mask_truncated_completions",
            others="overlong_filter mask_overlong overlong_buffer",
        ),
        Named(
            "training.rollout_correction",
            trl="vllm_importance_sampling_correction vllm_importance_sampling_mode",
            verl="algorithm.rollout_correction.rollout_is",
            others="rollout_is tis use_tis",
        ),
        Named(
            "training.rollout_correction_limit",
            trl="vllm_importance_sampling_cap",
            verl="algorithm.rollout_correction.rollout_is_threshold",
            others="rollout_is_threshold tis_imp_ratio_cap",
        ),
        Named("training.rollout_rejection", verl="algorithm.rollout_correction.rollout_rs", others="rollout_rs"),
        Named(
            "training.num_train_epochs",
            trl="num_iterations",
            verl=f"{_ACTOR}.ppo_epochs",
            others="num_epochs epochs ppo_epochs",
            note="passes over a step's rollouts",
        ),
    ),
    "Length, saving, evaluating": (
        Named("experiment.total_step training.max_steps", trl="max_steps", note="RL and SFT"),
        Named(
            "experiment.total_step training.num_train_epochs",
            verl="trainer.total_training_steps trainer.total_epochs",
            others="num_training_steps total_steps num_steps training_steps total_epochs total_training_steps",
        ),
        Named(
            "experiment.save_every",
            trl="save_steps",
            verl="trainer.save_freq",
            others="save_freq save_interval checkpointing_steps save_strategy",
        ),
        Named(
            "experiment.keep_last",
            trl="save_total_limit",
            verl="trainer.max_actor_ckpt_to_keep",
            others="max_ckpt_to_keep keep_last_n max_actor_ckpt_to_keep",
        ),
        Named("experiment.early_stopping", trl="early_stopping_patience", others="patience early_stop"),
        Named("experiment.early_stopping_gain", trl="early_stopping_threshold"),
        Named("experiment.keep_best", trl="load_best_model_at_end metric_for_best_model"),
        Named(
            "experiment.eval_every",
            trl="eval_steps",
            verl="trainer.test_freq",
            others="test_freq eval_interval eval_freq",
        ),
        Named("experiment.eval_first", trl="eval_on_start", verl="trainer.val_before_train", others="val_before_train"),
        Named(
            "experiment.resume",
            trl="resume_from_checkpoint",
            verl="trainer.resume_mode trainer.resume_from_path",
            others="resume_mode resume_path resume_from_path",
            note="the same command resumes by itself",
        ),
        Named("experiment.overwrite", others="overwrite_output_dir"),
        Named(
            "experiment.project",
            trl="run_name",
            verl="trainer.experiment_name trainer.project_name",
            others="experiment_name exp_name project_name wandb_project job_name",
        ),
        Named("experiment.output_dir", verl="trainer.default_local_dir", others="default_local_dir save_dir ckpt_path"),
        Named(
            "tracking.sample_every",
            trl="log_completions",
            verl="trainer.log_val_generations",
            others="logging_completions log_samples log_val_generations",
        ),
        Named("tracking.report_to", verl="trainer.logger", others="logger use_wandb with_tracking"),
        Named(
            "",
            trl="logging_steps logging_first_step",
            others="log_interval log_every log_freq",
            note="Every step is logged to metrics.jsonl.",
        ),
    ),
    "Models, data, rewards": (
        Named(
            "model.pretrained_model",
            trl="model_name_or_path",
            verl="actor_rollout_ref.model.path",
            others="model.path model.name actor.path actor.model model_path model_name pretrained_model_name_or_path "
            "checkpoint actor_path pretrain",
        ),
        Named("model.value_base_model", verl="critic.model.path", others="critic_pretrain critic_model"),
        Named(
            "dataset.train_dataset dataset.optimization_data",
            trl="dataset_name",
            verl="data.train_files",
            others="dataset_path train_files train_file prompt_data",
            note="of RL and of SFT",
        ),
        Named(
            "evaluation.eval_dataset",
            verl="data.val_files",
            others="val_files val_file val_dataset test_files eval_file",
        ),
        Named(
            "dataset.columns",
            trl="dataset_text_field",
            verl="data.prompt_key",
            others="prompt_key prompt_column input_key label_key",
        ),
        Named("dataset.template", trl="chat_template_path", others="chat_template prompt_template apply_chat_template"),
        Named("dataset.validation_split", others="val_size val_split eval_split test_size"),
        Named("dataset.system", others="system_prompt system_message system_instruction"),
        Named("dataset.few_shot", others="num_fewshot n_shot fewshot few_shots fewshot_examples"),
        Named("dataset.image_root", others="image_folder image_dir media_dir"),
        Named(
            "reward.function",
            trl="reward_funcs",
            verl="custom_reward_function.path custom_reward_function.name reward_model.reward_manager",
            others="reward.path reward_function reward_fn custom_reward_function reward_manager",
        ),
        Named("reward.weights", trl="reward_weights"),
        Named("reward.combine", trl="multi_objective_aggregation"),
        Named(
            "judge.local reward.function",
            verl="reward_model.model.path",
            others="reward_model reward_model_path reward_pretrain",
        ),
    ),
    "Optimizer and precision": (
        Named(
            "optimizer.params.learning_rate",
            trl="learning_rate",
            verl=f"{_ACTOR}.optim.lr",
            others="lr actor_lr policy_lr max_lr peak_lr actor_learning_rate",
        ),
        Named("optimizer.params.value_learning_rate", verl="critic.optim.lr", others="critic_lr critic_learning_rate"),
        Named("optimizer.params.beta1", trl="adam_beta1", others="adam_beta_1"),
        Named("optimizer.params.beta2", trl="adam_beta2", others="adam_beta_2"),
        Named("optimizer.params.beta1 optimizer.params.beta2", verl=f"{_ACTOR}.optim.betas", others="betas adam_betas"),
        Named("optimizer.params.epsilon", trl="adam_epsilon", others="adam_eps"),
        Named("optimizer.params.weight_decay", trl="weight_decay", verl=f"{_ACTOR}.optim.weight_decay", others="wd"),
        Named("optimizer.name", trl="optim", others="optimizer_type"),
        Named(
            "lr_scheduler.params.warmup_steps",
            trl="warmup_ratio warmup_steps",
            verl=f"{_ACTOR}.optim.lr_warmup_steps {_ACTOR}.optim.lr_warmup_steps_ratio",
            others="lr_warmup_steps lr_warmup_steps_ratio lr_warmup_ratio num_warmup_steps",
            note="a number of steps, no share",
        ),
        Named(
            "lr_scheduler.scheduler",
            trl="lr_scheduler_type",
            verl=f"{_ACTOR}.optim.warmup_style {_ACTOR}.optim.lr_scheduler_type",
            others="lr_schedule lr_decay_style warmup_style",
        ),
        Named(
            "lr_scheduler.params.min_lr_scale",
            verl=f"{_ACTOR}.optim.min_lr_ratio",
            others="min_lr min_lr_ratio min_lr_rate",
        ),
        Named(
            "training.max_grad_norm",
            trl="max_grad_norm",
            verl=f"{_ACTOR}.grad_clip {_ACTOR}.optim.clip_grad",
            others="grad_clip clip_grad gradient_clipping gradient_clip_val max_norm",
        ),
        Named(
            "training.batch_size_lm",
            trl="per_device_train_batch_size",
            verl=f"{_ACTOR}.ppo_micro_batch_size_per_gpu {_ACTOR}.ppo_micro_batch_size",
            others="micro_batch_size micro_batch_size_per_gpu per_gpu_train_batch_size ppo_micro_batch_size "
            "ppo_micro_batch_size_per_gpu train_micro_batch_size_per_gpu micro_train_batch_size",
            note="rows counted; packing sizes forwards",
        ),
        Named(
            "training.rows_per_update",
            verl=f"{_ACTOR}.ppo_mini_batch_size",
            others="ppo_mini_batch_size mini_batch_size global_batch_size effective_batch_size",
            note="verl counts prompts; here rows, a response and round each",
        ),
        Named(
            "training.max_tokens_per_microbatch",
            verl=f"{_ACTOR}.ppo_max_token_len_per_gpu {_ACTOR}.use_dynamic_bsz",
            others="ppo_max_token_len_per_gpu max_tokens_per_gpu max_token_len use_dynamic_bsz",
        ),
        Named(
            "training.gradient_checkpointing_enable",
            trl="gradient_checkpointing",
            verl="actor_rollout_ref.model.enable_gradient_checkpointing",
            others="activation_checkpointing enable_gradient_checkpointing",
        ),
        Named("training.mixed_precision", trl="bf16 fp16", others="torch_dtype precision"),
        Named("training.enable_tf32", trl="tf32"),
        Named("training.seed", trl="data_seed", others="random_seed"),
        Named(
            "lora.rank",
            trl="lora_r use_peft",
            verl="actor_rollout_ref.model.lora_rank",
            others="lora_rank use_lora peft_type peft_config",
        ),
        Named("lora.alpha", trl="lora_alpha", verl="actor_rollout_ref.model.lora_alpha"),
        Named("lora.dropout", trl="lora_dropout"),
        Named("lora.target_modules", trl="lora_target_modules", verl="actor_rollout_ref.model.target_modules"),
    ),
    "Machines": (
        Named(
            "experiment.processes",
            verl="trainer.n_gpus_per_node",
            others="n_gpus_per_node nproc_per_node num_processes num_gpus n_gpus",
        ),
        Named("experiment.num_node", verl="trainer.nnodes", others="nnodes num_nodes num_machines"),
        Named(
            "experiment.deepspeed_file",
            trl="deepspeed fsdp fsdp_config",
            verl=f"{_ACTOR}.strategy {_ACTOR}.fsdp_config.optimizer_offload {_ACTOR}.fsdp_config.param_offload",
            others="zero_stage optimizer_offload param_offload",
        ),
        Named(
            "experiment.timeout_minutes",
            trl="ddp_timeout",
            verl="actor_rollout_ref.nccl_timeout",
            others="nccl_timeout",
        ),
        Named(
            "",
            trl="use_vllm vllm_mode vllm_server_base_url",
            verl=f"{_ROLLOUT}.name",
            others="vllm_num_engines colocate_all_models",
            note="The sampler shares the trainer's devices.",
        ),
        Named(
            "",
            trl="push_to_hub hub_model_id",
            note="A checkpoint is pushed by dllm-export (models/export.py), not by the run.",
        ),
        Named("", trl="remove_unused_columns", note="Reward functions get all columns of a task."),
    ),
}
"""Heading -> what is set under it."""
