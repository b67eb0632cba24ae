"""Every key that a run understands, with type, default, range and one line of help.

`configs.load` merges YAML and command line into `Config`; `configs.spellings` has dLLM-RL's names of keys.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow", "swanlab")
SET_FIELDS = ("name", "data_type", "weight", "reward", "columns")
"""Of one of several sets of tasks."""
EXAMPLE_FIELDS = ("name", "weight", "columns")
"""Of one of several sets of SFT examples."""
HELD_OUT_FIELDS = ("name", "columns")
DATA_TYPES = ("math", "code", "option", "general", "mmu")
# Names of built-ins, here too so that a wrong one is told before torch is loaded; a test compares them with the code.
STRATEGY_NAMES = ("low_confidence_static", "low_confidence_dynamic", "sequential", "entropy_bounded")
STRATEGIES_BY_THRESHOLD = ("low_confidence_dynamic",)
TARGET_NAMES = (
    *("confidence", "margin_confidence", "neg_entropy", "random"),
    *("maskgit_plus", "topk_margin", "entropy", "origin"),
)
ADVANTAGE_NAMES = ("zscore", "centered", "leave_one_out", "rank", "wd1")
METHOD_NAMES: dict[str, tuple[str, ...]] = {
    "rl": ("TraceRL", "coupled", "random_masking", "elbo", "ar_order", "mean_field"),
    "sft": ("coupled", "random_masking", "elbo", "semi-ar", "trace", "ar", "uniform"),
}
"""Command -> the masking methods that it knows."""
OBJECTIVE_NAMES = ("clip", "reinforce", "gspo", "espo", "ebpo", "bgpo", "spg", "stabledrl", "gdsd", "distill")
Effect = Literal["result", "speed", "output", "length"]


def opt(
    default: Any,
    help: str,
    *,
    each: type | None = None,
    fields: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    names: tuple[str, ...] = (),
    changes: Effect = "result",
) -> Any:
    """A field with its help line and the range or the names that its value must fit. each: one value of this type, or a
    list of such values, each of which must fit. names: those of built-ins, in place of which a user may name
    path/to/file.py:name. fields: such a value may be a mapping of these names, the first
    of which it needs. changes: what another value of the key changes (`configs.effects`); a
    run is resumed with another one of all but the keys of its result."""
    metadata = {"help": help, "each": each, "low": low, "high": high, "choices": choices, "changes": changes}
    metadata |= {"fields": fields, "names": names}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


speed = functools.partial(opt, changes="speed")
output = functools.partial(opt, changes="output")
length = functools.partial(opt, changes="length")


def section(kind: type) -> Any:
    return field(default_factory=kind)


@dataclass(frozen=True)
class ExperimentConfig:
    # its folder and its length
    project: str = output("run", "name of the run; its folder is output_dir/project")
    output_dir: str = output("runs", "folder that holds the folders of runs")
    total_step: int = length(80, "RL steps in all (SFT: training.num_train_epochs, training.max_steps)", low=1)
    # when it saves and evaluates
    save_every: int = output(
        10, "a checkpoint every so many RL steps (SFT: epochs, and see save_every_updates), and at the end", low=1
    )
    save_every_updates: int | None = output(
        None, "SFT: a checkpoint every so many updates too, to resume within an epoch; null = by epochs only", low=1
    )
    eval_every: int = output(10, "evaluation every so many RL steps (SFT: held-out loss, updates)", low=1)
    train_value_every: int = opt(1, "the value model, if there is one, learns every so many RL steps", low=1)
    eval_first: bool = output(True, "evaluate before the first RL step (SFT: update) too")
    early_stopping: int | None = length(
        None, "stop after so many evaluations (SFT: held-out losses) in a row without a better one; null = never", low=1
    )
    early_stopping_metric: str = length(
        "auto",
        "which of their figures: auto = accuracy, or mean reward where rewards are not 0 or 1 (SFT: loss); or its "
        "name: reward, pass@4, accuracy(x) (SFT: nll; DPO: margin, pair_accuracy)",
    )
    early_stopping_gain: float = length(0.0, "better by more than so much", low=0.0)
    save_dtype: str = output(
        "fp32",
        "type of the weights in a checkpoint's model folder; bf16 halves them, and the fp32 weights, with which a run "
        "resumes exactly, are then in trainer/",
        choices=("fp32", "bf16"),
    )
    keep_last: int = output(0, "keep the newest so many checkpoints only; 0 = all of them", low=0)
    keep_best: bool = output(
        False,
        "RL: save every step that is evaluated too, and keep the best checkpoint besides (ckpt/best): by accuracy, or "
        "by mean reward where rewards are not 0 or 1",
    )
    # what it begins with
    overwrite: bool = output(False, "delete what an earlier run with another config left in the run's folder")
    resume: str = output(
        "auto",
        "auto = from the newest whole checkpoint of the run's folder; never = refuse a folder that has one; or the "
        "path of a checkpoint (ckpt/step-000010) of any run of the same command, to begin with where this run has none",
    )
    # what it runs on
    deterministic: bool = opt(
        False, "fixed shapes and deterministic kernels: the same run gives the same bits, somewhat slower"
    )
    threads: int = speed(
        0, "CPU threads of torch in each process; 0 = OMP_NUM_THREADS, else as many as there are cores for it", low=0
    )
    processes: int = speed(0, "processes on each machine; 0 = one a GPU, one without GPUs", low=0)
    deepspeed_file: str | None = speed(
        None,
        "a file of accelerate_configs/ (1_node_8_gpus_deepspeed_zero3): nodes, processes and engine, DDP, ZeRO-2, "
        "ZeRO-3 or FSDP2; null = a process for each GPU, each with the whole model",
    )
    gpu_memory_gib: float = speed(
        0.0,
        "plan the memory (dry_run) for GPUs of this size, on any machine; 0 = for this machine's device",
        low=0.0,
    )
    # several machines
    num_node: int | None = speed(None, "nodes of the job, a check; their number comes from the environment", low=1)
    launcher: str = speed(
        "auto",
        "multinode_*.py: each_node = every node runs the command, ssh = node 0 starts the others, auto = those that "
        "have not joined after join_seconds",
        choices=("auto", "each_node", "ssh"),
    )
    join_seconds: float = speed(60.0, "time for the nodes to find each other", low=1.0)
    ssh: str = speed("ssh -o BatchMode=yes", "ssh command of the launcher, with port and options")
    ssh_user: str = speed("root", "user on the other nodes")
    timeout_minutes: float = speed(
        60.0, "the job stops when a process does not reach a collective call for so long", low=0.01
    )


@dataclass(frozen=True)
class ModelConfig:
    pretrained_model: str = opt("", "checkpoint folder (original layout) or hub name")
    compared_with: str | None = opt(
        None, "eval.py: a second checkpoint, evaluated on the same draws and compared (model=A,B sets both)"
    )
    model_base: str | None = opt(None, "the model's family where config.json does not name it: sdar, dream, llada, ...")
    optimized_name: str = opt("optimized", "name under ckpt/ of the newest trained model")
    value_base_model: str | None = opt(
        None, "checkpoint that a value model starts from (a new head is zero); null = advantages without one"
    )
    reference_model: str | None = opt(
        None,
        "checkpoint that training.kl_to=reference, objective=distill and sft_objective=dpo compare the policy with, "
        "of one vocabulary with it; null = the first model",
    )
    optimized_value_name: str = opt("optimized_value", "name under ckpt/ of the newest trained value model")
    random_init: bool = opt(
        False, "pretrained_model holds config.json and tokenizer only; weights are drawn from training.seed"
    )
    prepare_with: str | None = output(None, "SFT config that makes pretrained_model when that folder is absent")
    vq_model_path: str | None = opt(
        None, "mmada: folder or hub name of MAGVIT-v2 (showlab/magvitv2), which makes tokens of pictures"
    )
    image_fit: str = opt(
        "auto",
        "how a picture is brought to the model's size: auto, lladav anyres or pad, mmada pad, crop or squash",
        choices=("auto", "anyres", "pad", "crop", "squash"),
    )
    image_resolution: int = opt(512, "mmada: side of a picture in pixels, of which 16 are a token's", low=1)
    device: str = opt("auto", "auto (a GPU if there is one), cpu or cuda", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class DatasetConfig:
    train_dataset: Any = opt(
        "",
        "RL tasks: a name in `folder` (MATH_train), a path or hub:OWNER/NAME, or a list of such, or of {name, "
        "data_type, weight, reward, columns}, drawn by weight; without weights the sets are one",
        each=str,
        fields=SET_FIELDS,
    )
    eval_dataset: Any = opt(
        "",
        "eval.py's tasks: a name, a path, or a list of such, or of {name, data_type, weight, reward, columns}",
        each=str,
        fields=SET_FIELDS,
    )
    optimization_data: Any = opt(
        "",
        "SFT examples: a name, a path, or a list of such, or of {name, weight, columns}, drawn by weight; without "
        "weights the sets are one; also the samples.jsonl of eval.py and the rollouts.jsonl of rl.py",
        each=str,
        fields=EXAMPLE_FIELDS,
    )
    sample_with: str | None = output(None, "config of eval.py that samples optimization_data when that file is absent")
    traces_per_task: int = opt(
        0, "train on the so many fastest right responses of each task in such a file; 0 = all rows", low=0
    )
    pairs_per_task: int | None = opt(
        1, "dpo on such a file: pairs of a right and a wrong response of each task, at most; null = all", low=1
    )
    validation_dataset: Any = output(
        None,
        "SFT: examples whose loss is measured every experiment.eval_every updates: a name, a path, or a list of such, "
        "or of {name, columns}",
        each=str,
        fields=HELD_OUT_FIELDS,
    )
    validation_split: float = opt(
        0.0, "SFT: share of optimization_data, of each set, that is held out for that instead", low=0.0, high=0.99
    )
    data_type: str = opt("math", "kind of task: decides prompt and reward; mmu: about pictures", choices=DATA_TYPES)
    image_root: str = opt("", "folder of the pictures that rows name; default that of the data file")
    add_think_prompt: bool = opt(False, "mmu: the question comes after MMaDA's instruction to think first")
    folder: str = opt("data", "where names of data sets are looked up")
    seed: int = opt(0, "seed of the built-in tasks' data", low=0, high=2**63 - 1)
    template: str = opt(
        "auto",
        "auto = the family's prompt, chat = its instruction in the tokenizer's chat template, plain = the question as "
        "it is, or a text with {{problem}}, or @FILE with such a text",
    )
    system: str | None = opt(
        None, "system prompt of prompts and conversations that have none, a text or @FILE; null = the family's"
    )
    few_shot: Any = opt(
        [],
        "examples put before each question as turns: a data file with question and answer, or a list of {question, "
        "answer}",
        each=str,
        fields=("question", "answer"),
    )
    source_column: str = output(
        "source", "column of tasks whose values (at most 24) get figures of their own, in evaluations and RL"
    )
    columns: dict[str, str] = opt(
        {},
        "names of your columns, or of fields inside them: {question: problem, ground_truth_answer: "
        "reward_model.ground_truth}; rows without such a column keep the field of the wanted name",
    )
    max_tasks: int = opt(0, "use the first so many tasks only; 0 = all", low=0)
    curriculum: float = opt(
        1.0,
        "chance of being drawn, against the others, of tasks whose last group had an accuracy outside "
        "training.min_accuracy to max_accuracy; 1 = no curriculum",
        low=1e-6,
        high=1.0,
    )
    over_long_prompts: str = opt("drop", "prompts over training.max_prompt_len", choices=("drop", "error"))


@dataclass(frozen=True)
class Section:
    """A section of the config whose keys messages name. typed: field -> the dotted key as the user typed it, where that
    is another spelling."""

    section: ClassVar[str]
    typed: dict[str, str] = field(default_factory=dict, compare=False)

    def key(self, name: str) -> str:
        """The dotted key of a field, as the user typed it."""
        return self.typed.get(name, f"{self.section}.{name}")


@dataclass(frozen=True)
class DecodeConfig(Section):
    """How responses are sampled. A field that `sample.SamplingConfig` has too is handed to it under that name."""

    num_response_per_task: int = opt(1, "responses a task", low=1)
    max_new_tokens: int = opt(2000, "length of a response at most, in tokens", low=1)
    block_size: Any = opt(None, "tokens a block; default the checkpoint's, full attention 32", each=int, low=1)
    steps_per_block: Any = opt(None, "denoising steps a block; default one a token, which is the most", each=int, low=1)
    steps: int | None = opt(None, "denoising steps in all, divided evenly over the blocks, the first one more", low=1)
    strategy: Any = opt(
        "low_confidence_dynamic",
        "which positions a step commits: low_confidence_dynamic, low_confidence_static, sequential, entropy_bounded, "
        "or your own, path/to/file.py:name",
        each=str,
        names=STRATEGY_NAMES,
    )
    strategy_params: dict[str, Any] = opt({}, "parameters of your own strategy: {share: 0.5}")
    threshold: Any = opt(0.9, "score above which low_confidence_dynamic commits", each=float, low=0.0, high=1.0)
    entropy_bound: float = opt(0.35, "bound of entropy_bounded, nats", low=0.0)
    edit_threshold: Any = opt(
        None,
        "block families: a step also overwrites tokens of its block where the model proposes another one whose "
        "confidence (under target: margin_confidence its margin) is above this; null = never (0 is a threshold)",
        each=float,
        low=0.0,
        high=1.0,
    )
    remask_threshold: float | None = opt(
        None,
        "tokens of the block at hand to which a step gives a probability below this return to the mask; null = never",
        low=0.0,
        high=1.0,
    )
    max_post_steps: int = opt(
        16,
        "of edits and remasking: steps of a block without masks at most; 0 = the block ends with its last mask",
        low=0,
    )
    remask_budget: int = opt(16, "tokens of a block that may return to the mask", low=0)
    alg_temp: float = opt(0.0, "low_confidence_static draws positions at this temperature; 0 = the best", low=0.0)
    target: str = opt(
        "confidence",
        "score that ranks positions: confidence, margin_confidence, neg_entropy, random (Dream's maskgit_plus, "
        "topk_margin, entropy, origin), or your own, path/to/file.py:name",
        names=TARGET_NAMES,
    )
    target_params: dict[str, Any] = opt({}, "parameters of your own target")
    pad_target_penalty: float = opt(1.0, "lowers the score of pad tokens", low=1e-6)
    confidence: str = opt("untempered", "distribution that confidence is read from", choices=("untempered", "tempered"))
    temperature: Any = opt(1.0, "0 = greedy", each=float, low=0.0)
    final_temperature: float | None = opt(
        None,
        "canvases (DiffusionGemma): the temperature falls over a canvas's steps from temperature to this; null = it "
        "stays",
        low=1e-6,
    )
    stable_steps: int = opt(
        1,
        "canvases: one may end early when its likeliest tokens have not changed in so many steps and their mean "
        "entropy is below settled_entropy",
        low=0,
    )
    settled_entropy: float = opt(0.005, "canvases: nats, see stable_steps; 0 = all steps are taken", low=0.0)
    top_k: Any = opt(0, "top-k filter, 0 = off, 1 = greedy", each=int, low=0)
    top_p: float = opt(1.0, "nucleus filter, 1 = off", low=1e-6, high=1.0)
    cache: str = opt(
        "auto",
        "auto = the family's exact cache, none = full recompute; prefix, dual: approximate, full attention",
        choices=("auto", "exact", "none", "prefix", "dual"),
    )
    further_horizon: int | None = opt(
        None, "tokens right of the block that cache=prefix runs and sees; null = to the end", low=0
    )
    output: str = opt(
        "text",
        "image: the question is a description, the response a picture of max_new_tokens codes (mmada)",
        choices=("text", "image"),
    )
    guidance: float = opt(
        0.0, "of output=image: codes from (1 + guidance) conditional - guidance unconditional logits", low=0.0
    )
    early_stop: bool = opt(True, "decoding ends with the block that holds a stop id; false: at max_new_tokens")
    max_slots: int | None = speed(
        None, "sequences decoded at a time at most; auto = as many as fit on a GPU, 256 on a CPU", low=1
    )
    graphs: str = speed(
        "auto",
        "auto = on a GPU a step with an exact cache is captured as a CUDA graph; off = operation by operation",
        choices=("auto", "off"),
    )
    attention: str = speed(
        "auto",
        "flex = FlexAttention, compiled, which reads only the keys that a response has; sdpa = torch's attention under "
        "masks; auto = flex on a GPU, sdpa on a CPU",
        choices=("auto", "flex", "sdpa"),
    )
    start_with_think: bool = opt(False, "prompt opens a <think> part")
    stop_token_list: list[str] | None = opt(None, "texts of single tokens that end a response, besides the model's own")

    def check_steps(self, block_size: int) -> None:
        """ValueError where `steps` are fewer than the blocks of so many tokens in the window."""
        blocks = -(-self.max_new_tokens // block_size)
        if self.steps is not None and self.steps < blocks:
            raise ValueError(
                f"{self.key('steps')}={self.steps} are fewer than the {blocks} blocks of {block_size} tokens in "
                f"{self.max_new_tokens}: a block needs one at least. Raise steps or block_size."
            )

    def parallel_lists(self) -> dict[str, list[Any]]:
        """Those of strategy, top_k, block_size, steps_per_block, threshold, edit_threshold and temperature that are
        lists: entry i of each goes with entry i of the others. ValueError where their lengths differ or are 0."""
        names = ("strategy", "top_k", "block_size", "steps_per_block", "threshold", "edit_threshold", "temperature")
        lists = {name: value for name in names if isinstance(value := getattr(self, name), list)}
        lengths = {self.key(name): len(value) for name, value in lists.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise ValueError(f"lists go together and must be of one length, at least 1; their lengths are {lengths}.")
        return lists


@dataclass(frozen=True)
class RolloutConfig(DecodeConfig):
    section = "rollout"

    dtype: str = opt(
        "auto",
        "type of the sampler's weights; auto = bf16 under mixed_precision bf16",
        choices=("auto", "fp32", "bf16"),
    )
    tensor_parallel_size: int = speed(1, "processes of a node that sample as one, each with its share of heads", low=1)
    num_task_per_step: int = opt(64, "tasks drawn for one RL step", low=1)
    refill_draws: int = opt(
        0, "so often at most a step draws further tasks in place of groups that teach nothing (DAPO); 0 = never", low=0
    )
    output_unmasking_history: bool = output(True, "eval.py: write step maps into the samples file")


@dataclass(frozen=True)
class EvaluationConfig(DecodeConfig):
    section = "evaluation"

    eval_dataset: Any = opt(
        None,
        "evaluation tasks during RL: a name, a path, or a list of such, or of {name, data_type, weight, reward, "
        "columns}; null = no evaluation",
        each=str,
        fields=SET_FIELDS,
    )
    data_type: str = opt("math", "kind of the evaluation tasks", choices=DATA_TYPES)
    max_tasks: int = opt(0, "use the first so many tasks only; 0 = all", low=0)


@dataclass(frozen=True)
class TrainingConfig:
    objective: str = opt(
        "clip",
        "what RL minimises: clip, reinforce, gspo, espo, ebpo, bgpo, spg, stabledrl, gdsd, distill "
        "(docs/algorithms.md), or your own, path/to/file.py:name",
        names=OBJECTIVE_NAMES,
    )
    objective_params: dict[str, Any] = opt({}, "parameters of the objective: {alpha: 0.1}")
    sft_objective: str = opt(
        "nll",
        "what SFT minimises: nll = of the responses, -log p; dpo = pairs, the chosen response is to gain more on the "
        "reference than the rejected one",
        choices=("nll", "dpo"),
    )
    dpo_beta: float = opt(0.1, "dpo: weight of the gains, so the hold of the reference", low=1e-6)
    method: str = opt(
        "TraceRL",
        "masks of RL: TraceRL, coupled, random_masking, elbo, ar_order, mean_field; of SFT: semi-ar, trace, "
        "random_masking, coupled, elbo, ar, uniform (DiffusionGemma); or your own, path/to/file.py:name",
    )
    method_params: dict[str, Any] = opt({}, "parameters of your own method: {level: 0.5}")
    block_size: int | None = opt(
        None,
        "tokens a block in training; must equal rollout.block_size; default the checkpoint's, full attention 32",
        low=1,
    )
    rows_per_response: int | None = opt(
        None,
        "train so many of the noisy copies of a response (of all its blocks), drawn with weights; null = all",
        low=1,
    )
    rows_by: str = opt(
        "uniform",
        "chance of a copy under rows_per_response: equal, or by the surprisal of its tokens in sampling",
        choices=("uniform", "surprisal"),
    )
    shrink: int = opt(1, "neighbouring denoising steps merged into one training round", low=1)
    replay_routing: bool = opt(
        False,
        "TraceRL of a mixture of experts: each token takes the experts in training that it had in sampling, which "
        "records them (slower)",
    )
    trained_events: str = opt(
        "all",
        "TraceRL, where tokens are overwritten or masked again: train every choice, or those that still stand at the "
        "end",
        choices=("all", "last"),
    )
    post_num: int | None = opt(0, "pad tokens after the response that are trained; null = all of the last block", low=0)
    max_gen_length: int | None = opt(None, "longest response trained; default that of rollout, SFT: of the data", low=1)
    max_prompt_len: int = opt(784, "longest prompt in tokens", low=1)
    lower_p: float = opt(0.1, "random masks: lowest noise level", low=0.0, high=1.0)
    upper_p: float = opt(0.9, "random masks: highest noise level", low=0.0, high=1.0)
    mask_times_per_sample: int = opt(
        1,
        "random masks: noisy copies (coupled, elbo: pairs) of every sample; full attention's semi-ar has one always",
        low=1,
    )
    replaced_p: float = opt(
        0.0,
        "SFT: chance that a token which is not masked becomes a random one, to be put right (LLaDA2.1's edits)",
        low=0.0,
        high=1.0,
    )
    unmasked_p: float = opt(
        0.25,
        "SFT with replaced_p: chance that a noisy copy masks nothing, as a block is when its last mask has fallen",
        low=0.0,
        high=1.0,
    )
    loss_weight: str = opt(
        "none",
        "random masks: weight of a token, equal or 1 / noise level",
        choices=("none", "inverse_level"),
    )
    eps: float = opt(0.2, "clip range of the policy ratio and of a value's move", low=0.0)
    eps_low: float | None = opt(None, "clip range below 1; null = eps", low=0.0)
    eps_high: float | None = opt(None, "clip range above 1; null = eps", low=0.0)
    dual_clip: float | None = opt(
        None, "negative advantages: the ratio counts as at most so much (3 in the field); null = off", low=1.0
    )
    nll_weight: float = opt(0.0, "weight of the likelihood of responses with a positive reward; 0 = off", low=0.0)
    beta: float = opt(0.01, "weight of the KL penalty; 0 = off", low=0.0)
    kl_estimator: str = opt("k3", "estimator of the KL penalty: k1, k2 or k3")
    kl_to: str = opt(
        "old",
        "what the KL penalty is to: the policy of the last step, or the frozen first model (or model.reference_model)",
        choices=("old", "reference"),
    )
    gam: float = opt(1.0, "value model, process rewards: discount a denoising step", low=0.0, high=1.0)
    lam: float = opt(1.0, "value model: lambda of generalised advantage estimation", low=0.0, high=1.0)
    normalization: str = opt(
        "constant",
        "how token losses are averaged",
        choices=("constant", "token_mean", "response_mean", "reference"),
    )
    advantage: str = opt(
        "zscore",
        "advantages of a group's rewards: zscore, centered (on their mean), leave_one_out, rank, wd1, or your own, "
        "path/to/file.py:name",
        names=ADVANTAGE_NAMES,
    )
    advantage_params: dict[str, Any] = opt({}, "parameters of the advantage: {power: 2}")
    whiten_advantages: bool = opt(
        False, "advantages of a step less their mean and divided by their spread, after those of the groups"
    )
    min_accuracy: float = opt(0.2, "groups below this accuracy are dropped (0/1 rewards)", low=0.0, high=1.0)
    max_accuracy: float = opt(0.8, "groups above this accuracy are dropped (0/1 rewards)", low=0.0, high=1.0)
    truncated: str = opt(
        "keep",
        "responses without a stop: keep, drop from training, or count as wrong",
        choices=("keep", "drop", "wrong"),
    )
    logp_old: str = opt(
        "auto", "old log-probabilities: the sampler's, or recomputed", choices=("auto", "rollout", "recompute")
    )
    rollout_correction: str = opt(
        "none",
        "importance weights where sampler and trainer differ: none, truncated, or masked (needs recomputed logp_old)",
    )
    rollout_correction_level: str = opt(
        "token",
        "what such a weight is of: a token, a whole response, or a response's geometric mean",
        choices=("token", "sequence", "geometric"),
    )
    rollout_correction_limit: float = opt(2.0, "largest such weight; masked: its inverse is the smallest", low=1.0)
    rollout_rejection: str = opt(
        "none",
        "leave out tokens, or whole responses, whose recomputed over sampled probability lies outside the bounds below",
        choices=("none", "token", "sequence", "geometric"),
    )
    rollout_rejection_low: float = opt(0.5, "smallest such ratio that is trained", low=0.0, high=1.0)
    rollout_rejection_high: float = opt(2.0, "largest such ratio that is trained", low=1.0)
    rows_per_update: int | None = opt(
        None,
        "rows of an update (SFT: samples) over all processes, so that their number changes nothing; null = as dLLM-RL "
        "counts: gradient_accumulation_steps x batch_size_lm x processes",
        low=1,
    )
    gradient_accumulation_steps: int = opt(32, "micro-batches of rows an update, as dLLM-RL counts them", low=1)
    batch_size_lm: int = opt(1, "rows a micro-batch, as dLLM-RL counts them (SFT: samples)", low=1)
    num_train_epochs: int = opt(1, "passes over a step's rollouts (SFT: over the data)", low=1)
    max_steps: int | None = length(
        None, "SFT: updates in all, over as many epochs as they take, in place of num_train_epochs", low=1
    )
    max_tokens_per_microbatch: int | None = speed(
        None,
        "packed tokens of one forward at most; auto = as many as fit on a GPU, 16384 on a CPU; never changes a result",
        low=1,
    )
    max_grad_norm: float = opt(1.0, "gradient clipping; 0 = off", low=0.0)
    ema_decay: float = opt(
        0.0,
        "a running mean of the weights, mean <- decay x mean + (1 - decay) x weights after each update, is saved "
        "beside them (ckpt/optimized_ema); 0 = off",
        low=0.0,
        high=0.999999,
    )
    max_skipped_updates: int = output(10, "stop after so many non-finite updates in a row", low=1)
    mixed_precision: str = opt(
        "bf16",
        "bf16 = weights that work in bf16, in training and sampling, over fp32 ones that learn; auto = bf16 where the "
        "hardware has it",
        choices=("auto", "bf16", "no"),
    )
    enable_tf32: bool = opt(True, "TF32 matrix products on GPUs: with mixed_precision no, sampler and trainer differ")
    train_vision: str = opt(
        "false",
        "lladav: train what sees too, projector (and newline) or all (the tower as well); false = pictures are encoded "
        "once a step",
        choices=("false", "projector", "all"),
    )
    gradient_checkpointing_enable: bool = speed(False, "recompute activations in the backward pass")
    seed: int = opt(10086, "seed of weights, data order, rollouts and noise", low=0, high=2**63 - 1)


@dataclass(frozen=True)
class LoraSection:
    rank: int = opt(0, "train low-rank adapters of this rank and freeze the model; 0 = train all of it", low=0)
    alpha: float = opt(32.0, "an adapter adds alpha / rank times its output", low=0.0)
    dropout: float = opt(
        0.0, "of an adapter's input in training; above 0 sampler and trainer differ", low=0.0, high=0.99
    )
    target_modules: list[str] = opt([], "linear layers with an adapter (q_proj, ...); empty = all but the output head")


@dataclass(frozen=True)
class OptimizerParams:
    learning_rate: float = opt(1e-6, "peak learning rate", low=0.0)
    value_learning_rate: float = opt(5e-6, "peak learning rate of the value model", low=0.0)
    beta1: float = opt(0.9, "Adam", low=0.0, high=0.999999)
    beta2: float = opt(0.999, "Adam", low=0.0, high=0.99999999)
    weight_decay: float = opt(0.0, "decoupled weight decay", low=0.0)
    epsilon: float = opt(1e-8, "Adam", low=0.0)


@dataclass(frozen=True)
class OptimizerConfig:
    name: str = opt("adamw", "optimizer", choices=("adamw",))
    params: OptimizerParams = section(OptimizerParams)


@dataclass(frozen=True)
class SchedulerParams:
    warmup_steps: int = opt(0, "steps (RL steps, SFT updates) of linear warm-up", low=0)
    min_lr_scale: float = opt(1.0, "final learning rate as a share of the peak; 1 = constant", low=0.0, high=1.0)


@dataclass(frozen=True)
class SchedulerConfig:
    scheduler: str = opt("cosine", "shape of the decay", choices=("cosine", "linear", "constant"))
    params: SchedulerParams = section(SchedulerParams)


@dataclass(frozen=True)
class RewardConfig:
    function: Any = opt(
        None,
        "your reward: path/to/file.py:name, called with (prompts, completions, **columns), plain or async; or a list, "
        "which is added up",
        each=str,
    )
    weights: dict[str, float] = opt(
        {}, "weights of its parts, default 1, by the functions' names: {digits: 0.5}; verifier: beside_verifier's"
    )
    combine: str = opt(
        "sum",
        "how several rewards become one advantage: sum = of their weighted sum; normalise = of each apart inside its "
        "group, added up by weight (GDPO)",
        choices=("sum", "normalise"),
    )
    beside_verifier: bool = opt(
        False,
        "your function's numbers are added to the verifier's reward in training, instead of replacing it",
    )
    answer_must_in_box: bool = opt(
        True,
        "an answer is what stands in \\boxed{}, and prompts of mmu say so; false: without a box, what comes after "
        '</think> or "the answer is", or all of it',
    )
    number_tolerance: float = opt(
        0.0, "mmu: a number is right within this share of the true one (charts: 0.05)", low=0.0, high=1.0
    )
    clip_model: str | None = opt(
        None,
        "folder or hub name of a CLIP model, which scores captions (mmu tasks with is_caption) and pictures that are "
        "drawn (rollout.output=image)",
    )
    speed_weight: float = opt(
        0.0, "weight of a response's tokens per denoising step beside its reward (see speed_goal)", low=0.0
    )
    speed_goal: str = opt(
        "bonus",
        "bonus = speed_weight times the speed is added to positive rewards; apart = speed has an advantage of its own, "
        "and groups that are all right but unequal in speed are trained; apart_right = the same, wrong responses "
        "counting as the slowest",
        choices=("bonus", "apart", "apart_right"),
    )
    min_speed_spread: float = opt(
        0.0, "speed apart: groups whose fastest and slowest differ by less (tokens per step) are dropped", low=0.0
    )
    workers: int = speed(0, "worker processes of the math reward; 0 = by cores", low=0)
    timeout_seconds: float = opt(10.0, "processor time for one answer of the math reward", low=0.0)
    function_timeout_seconds: float = speed(600.0, "time for one call of your function", low=0.0)


@dataclass(frozen=True)
class JudgeConfig(Section):
    """A language model as judge: at an endpoint (`api`) or loaded here (`local`). Off while neither is set."""

    section = "judge"

    api: str = speed("", "OpenAI-compatible endpoint (http://host:8000/v1) of the judge")
    model: str = opt("", "name of the judge at that endpoint")
    api_key_variable: str = speed("", "environment variable that holds the endpoint's key")
    local: str | None = opt(None, "the judge as a transformers model, a folder or hub name")
    pictures: bool = opt(
        True, "the endpoint is sent the pictures of a task (image_url); false: for a judge that reads text alone"
    )
    mode: str = opt(
        "score",
        "marks or comparisons in place of the verifier, or process: chunks scored after the verifier",
        choices=("score", "pairwise", "process"),
    )
    samples: int = opt(1, "judgements a question", low=1)
    chunk_tokens: int = opt(200, "process: tokens judged at a time", low=1)
    temperature: float = opt(0.6, "of the judge; 0 = greedy", low=0.0)
    top_p: float = opt(0.95, "nucleus filter of the judge", low=1e-6, high=1.0)
    max_tokens: int = opt(10_000, "longest answer of the judge", low=1)
    max_model_len: int = opt(15_000, "longest question and answer of the judge together, in tokens", low=2)
    parallel: int = speed(16, "requests (api) or sequences decoded (local) at a time", low=1)
    timeout_seconds: float = speed(300.0, "time for one answer of the endpoint", low=0.1)
    attempts: int = speed(4, "tries for one answer of the endpoint", low=1)


@dataclass(frozen=True)
class ExecuteConfig:
    num_chunk: int = speed(0, "programs run at a time for code rewards at most; never more than the cores", low=0)
    all_or_nothing: bool = opt(False, "code: 1 only if every test passes, instead of the share that passes")
    memory_gib: float = opt(2.0, "memory of one program", low=0.0)
    allow_unsafe: bool = opt(False, "run programs without isolation (only inside a container that you can lose)")
    allow_forgeable: bool = opt(False, "also run tests that a determined program can forge")


@dataclass(frozen=True)
class TrackingConfig:
    report_to: list[str] = output([], "trackers besides metrics.jsonl", choices=TRACKERS)
    profile_steps: list[int] = output(
        [], "steps (SFT: updates) that torch's profiler records, into profile/ of the run's folder", low=1
    )
    sample_every: int = output(
        10, "RL: show responses every so many steps, one on the terminal and a table in trackers; 0 = never", low=0
    )


@dataclass(frozen=True)
class Config:
    config: str = output("", "the YAML file")
    dry_run: bool = output(False, "check everything and stop before any model work")
    experiment: ExperimentConfig = section(ExperimentConfig)
    model: ModelConfig = section(ModelConfig)
    dataset: DatasetConfig = section(DatasetConfig)
    rollout: RolloutConfig = section(RolloutConfig)
    training: TrainingConfig = section(TrainingConfig)
    lora: LoraSection = section(LoraSection)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    lr_scheduler: SchedulerConfig = section(SchedulerConfig)
    evaluation: EvaluationConfig = section(EvaluationConfig)
    reward: RewardConfig = section(RewardConfig)
    judge: JudgeConfig = section(JudgeConfig)
    execute: ExecuteConfig = section(ExecuteConfig)
    tracking: TrackingConfig = section(TrackingConfig)
    hidden: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Dotted key -> `configs.hidden.Hidden`, of what came from environment variables."""
    typed: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Dotted key -> as it was typed, where that is another spelling."""
