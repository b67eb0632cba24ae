"""What can be known to fail is checked before a model is loaded; and what the start of a run shows."""

import importlib.util
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from configs import find, naming
from configs.commands import Command
from configs.schema import Config, DecodeConfig, TrainingConfig
from configs.sets import described, key_of_set
from data.tasks import Task, read_tasks, resolve_dataset
from data.templates import Writer
from models import DiffusionLM
from models.experts import experts_of
from models.families import Family
from models.spec import CheckpointSpec, hf_config
from models.tokenizer import read_tokenizer
from runtime.run_folder import RunFolder, run_path
from runtime.steps import step_folders
from runtime.text import print_text
from runtime.trackers import how_to_install
from sample.config import cache_of, check_routing
from train.distributed.kind import check_engine, world_size
from train.distributed.sharding import elements
from train.idle import warn_of_idle_adapters
from train.learner.checkpoint import KINDS, RL, given_checkpoint, newest_checkpoint
from train.learner.start import first_start
from train.memory.report import check_memory
from train.setup.blocks import Blocks
from train.setup.decodings import cache_mode, check_kind, check_merging, check_revision, check_steps
from train.setup.doors import check_doors, method_of, objective_of, reads_reference
from train.setup.eval_sets import KEYS, eval_sets
from train.setup.models import RunModels, check_team, reference_spec_of, spec_of, trained_vision, value_spec_of
from train.setup.pictures import check_drawing, check_fit, image_root
from train.setup.process import precision
from train.setup.prompts import PromptSource, format_of, require_room
from train.setup.rewards import check_tasks, step_judge_of
from train.setup.sources import require_as_written, require_kept, settings_of
from train.setup.train_sets import KEY as TRAINED
from train.setup.train_sets import TrainRewards, TrainSet, train_sets

logger = logging.getLogger(__name__)


def check(config: Config, first: Config | None = None) -> None:
    """Everything that can be known to fail of an RL config once it has a model (`check_rl_settings` comes first). A dry
    run prints the arithmetic. first: the SFT config that makes its model, where that is absent."""
    training, rollout = config.training, config.rollout
    spec = _model(config, first)
    if spec.family.noise == "uniform":
        raise ValueError(
            f"{spec.folder} is a {spec.family.name} checkpoint, which rl.py does not train: replay of canvases with "
            "self-conditioning is not built. Use eval.py or serve.py."
        )
    check_engine(config, None if first else spec.folder)
    check_doors(training, "rl", spec.family.attention, spec.family.logit_shift)
    check_drawing(config, rollout, spec.family)
    blocks = Blocks.of(config, spec)
    check_steps(rollout, blocks.sampled)
    if config.evaluation.eval_dataset:
        check_drawing(config, config.evaluation, spec.family)
        check_steps(config.evaluation, blocks.evaluated)
        check_room(spec, config.evaluation)
    _warn_of_unlikely_settings(config, spec, blocks)
    check_room(spec, rollout)
    check_merging(training, rollout, spec)
    check_team(config, spec, world_size(config))
    tasks = _check_tasks(config, spec)
    step_judge_of(config)
    check_start(config, RL, with_value=bool(config.model.value_base_model))
    others = _others(config, spec, first)
    if first is not None:
        if config.dry_run:
            print_text(f"{config.model.pretrained_model} is absent; {config.model.prepare_with} would make it first.")
            print_text("\n".join(plan_lines(config, tasks)))
        return
    models = RunModels("rl", spec, blocks, *others)
    if config.dry_run:
        print_text("\n".join(plan_lines(config, tasks)))
    check_memory(config, models)


def _model(config: Config, first: Config | None) -> CheckpointSpec:
    """The policy's spec, of a checkpoint that is as it was written; the one that it will have, where `first` makes
    it. ValueError where training cannot take its experts of sampling, or train its vision, as asked."""
    if first is not None:
        trained_vision(config, spec := _made_by(first))
        return spec
    require_as_written(spec := spec_of(config))
    _check_replayed_routing(config, spec)
    trained_vision(config, spec)
    return spec


def _value_model(config: Config, policy: CheckpointSpec) -> CheckpointSpec | None:
    """The value model's spec, of a checkpoint that is as it was written; None without one."""
    if (spec := value_spec_of(config, policy)) is not None:
        require_as_written(spec)
    return spec


def _reference(config: Config, policy: CheckpointSpec) -> CheckpointSpec | None:
    """The spec of model.reference_model, likewise; a warning where nothing reads it."""
    if (spec := reference_spec_of(config, policy)) is not None:
        require_as_written(spec)
    elif config.model.reference_model:
        logger.warning(
            "model.reference_model=%s has no effect: set training.kl_to=reference and training.beta, or "
            "training.objective=distill",
            config.model.reference_model,
        )
    return spec


def _others(
    config: Config, policy: CheckpointSpec, first: Config | None
) -> tuple[CheckpointSpec | None, CheckpointSpec | None]:
    """The specs of value model and reference; None too for one that is the model which `first` is still to make."""
    model = config.model
    made = model.pretrained_model if first is not None else None
    return (
        None if made and model.value_base_model == made else _value_model(config, policy),
        None if made and model.reference_model == made else _reference(config, policy),
    )


def _made_by(first: Config) -> CheckpointSpec:
    """The spec of the checkpoint that an SFT makes: its base's, with the blocks that it trains."""
    spec = spec_of(first)
    block_size = Blocks.of(first, spec, "sft").trained if spec.family.attention == "block" else spec.block_size
    return replace(spec, block_size=block_size)


def check_start(config: Config, command: str, with_value: bool = False) -> None:
    """ValueError where the run's folder is another run's, or `command` cannot begin with the checkpoint that
    experiment.resume names. Warns of adapters' settings that have no effect."""
    warn_of_idle_adapters(config)
    resume, folder = config.experiment.resume, RunFolder(run_path(config))
    resumes = check_folder(config, KINDS[command])
    if resumes and not step_folders(folder.checkpoints):
        resume = first_start(folder, resume)
    if resume in ("auto", "never") or (resumes and newest_checkpoint(folder.checkpoints, proven=False)):
        return
    given_checkpoint(resume, command, with_value)


def check_folder(config: Config, command: Command) -> bool:
    """Whether the run's folder holds this run already. ValueError where it is another's; a dry run, which writes
    nothing there, reports it instead. ValueError too where experiment.overwrite would delete what the run begins with.
    """
    path, overwrite = run_path(config), config.experiment.overwrite
    settings = settings_of(config, command, digests=RunFolder(path).config.exists())
    resumes = RunFolder.check(path, settings, overwrite=overwrite or config.dry_run)
    if overwrite and not resumes:
        require_kept(config, command, path)
    if config.dry_run and not resumes and not overwrite and (path / "config.yaml").exists():
        print_text(
            f"{path} holds a run of another configuration: choose another experiment.project for the run itself."
        )
    return resumes


def check_trackers(config: Config) -> None:
    """ValueError where tracking.report_to names a tracker that is not installed."""
    for name in config.tracking.report_to:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"tracking.report_to={name}: the package {name} is not installed: {how_to_install(name)}, or leave it "
                "out."
            )


def check_dataset(config: Config, name: str, key: str) -> Path:
    """The file of a data set that section and key `key` names. ValueError where there is none."""
    if not name:
        raise ValueError(f"{key} is not set: give a name in {config.dataset.folder}/ (MATH_train) or a path.")
    with naming(key):
        return resolve_dataset(name, folder=find(config.dataset.folder), seed=config.dataset.seed)


def tasks_of(config: Config, source: PromptSource, key: str, family: Family) -> list[Task]:
    """The tasks of a data set, read as the run will read it: malformed rows are reported before any model is loaded."""
    path = check_dataset(config, source.name, key)
    root, columns = image_root(config.dataset, path, family, source.data_type), source.columns_in(config.dataset)
    with naming(key):
        return read_tasks(path, data_type=source.data_type, columns=columns, image_root=root)[0]


def _check_replayed_routing(config: Config, spec: CheckpointSpec) -> None:
    key = "training.replay_routing=true"
    if not config.training.replay_routing:
        return
    if not method_of(config.training, "rl").as_sampled:
        raise ValueError(f"{key}: training.method={config.training.method} trains states that were never sampled.")
    cache = cache_of(cache_mode(config.rollout, spec.family), spec.family)
    check_routing(cache, experts_of(hf_config(spec.family, spec.raw)) > 0, True, key)


def check_room(spec: CheckpointSpec, decode: DecodeConfig) -> None:
    """ValueError where the responses of a section leave the model no position for a prompt, or the family has other
    choices, no such cache or no edits."""
    check_kind(decode, spec)
    cache_mode(decode, spec.family)
    check_revision(decode, spec)
    require_room(spec.positions, 1, "a prompt of one token", decode)


def revision_line(decode: DecodeConfig) -> str:
    """What steps change of decided tokens, after a comma; empty where they change none."""
    edited, remasked = decode.edit_threshold, decode.remask_threshold
    line = "" if edited is None else f", edits above {edited}"
    return line if remasked is None else f"{line}, remasked below {remasked}"


def check_prompts(config: Config, source: PromptSource, spec: CheckpointSpec, tasks: Sequence[Task]) -> None:
    """ValueError where the first task has no prompt under dataset.template."""
    template = config.dataset.template
    tokenizer = read_tokenizer(spec.folder, spec.family) if template == "chat" else None
    try:
        Writer(format_of(config, source, spec.family), tokenizer).prompt(tasks[0])
    except ValueError as error:
        shown = template if len(template) <= 40 else f"{template[:37]}..."
        raise ValueError(f"dataset.template={shown}: {error}.") from None


def _check_tasks(config: Config, spec: CheckpointSpec) -> int:
    """How many tasks there are to train on, all of them and the evaluation's fit for their reward."""
    trained = [(each, check_set(config, each.source, TRAINED, spec)) for each in require_train_sets(config)]
    with closing(TrainRewards(config)) as rewards:
        for each, tasks in trained:
            check_tasks(rewards.of(each.named.label), tasks, key_of_set(TRAINED, each.named.label), config.rollout)
        tested = [(each, check_set(config, each.source, KEYS["rl"], spec)) for each in eval_sets(config, "rl")]
        shared = [each for each, _ in tested if rewards.of_config and each.graded_as_training(config)]
        for test, tests in tested:
            if rewards.of_config and test in shared:
                check_tasks(rewards.of_config, tests, key_of_set(KEYS["rl"], test.label), config.evaluation)
    for test, tests in tested:
        if test not in shared:
            with test.reward_of(config) as reward:
                check_tasks(reward, tests, key_of_set(KEYS["rl"], test.label), config.evaluation)
    most = config.dataset.max_tasks
    return sum(min(len(tasks), most or len(tasks)) for _, tasks in trained)


def require_train_sets(config: Config) -> list[TrainSet]:
    """ValueError where there is none."""
    if not (sets := train_sets(config)):
        check_dataset(config, "", TRAINED)
    return sets


def check_set(config: Config, source: PromptSource, key: str, spec: CheckpointSpec) -> list[Task]:
    """The tasks of a set that is sampled, with a prompt for the first of them. ValueError otherwise."""
    tasks = tasks_of(config, source, key, spec.family)
    check_fit(config, spec.family, tasks)
    check_prompts(config, source, spec, tasks)
    return tasks


def _warn_of_unlikely_settings(config: Config, spec: CheckpointSpec, blocks: Blocks) -> None:
    rollout, evaluation = config.rollout, config.evaluation
    if rollout.temperature == 0 or rollout.top_k == 1:
        logger.warning(
            "rollout.temperature=%g, rollout.top_k=%s: greedy responses to a prompt hardly differ, and a group of "
            "equal rewards teaches nothing",
            *(rollout.temperature, rollout.top_k),
        )
    if spec.family.attention == "block" and evaluation.eval_dataset and blocks.trained not in blocks.evaluated:
        logger.warning(
            "evaluation in blocks of %s, of a model that is trained in blocks of %s",
            sorted(set(blocks.evaluated)),
            blocks.trained,
        )


def plan_lines(config: Config, tasks: int) -> list[str]:
    """The arithmetic of a step, for a dry run."""
    rollout, steps = config.rollout, config.experiment.total_step
    drawn = steps * rollout.num_task_per_step / tasks
    return [
        f"dry run of {config.experiment.project}: everything named exists and fits together",
        f"  data    {described(config.dataset.train_dataset)}: {tasks:,} tasks; "
        f"{steps} steps draw {drawn:.2g} times as many",
        f"  step    {responses_line(config)}, up to {rollout.max_new_tokens} tokens each",
        f"  update  {rows_line(config)}",
        *([f"  value   {value_line(config)}"] if config.model.value_base_model else []),
    ]


def objective_line(config: Config) -> str:
    """What is minimised: masks, objective with the parameters that are no defaults, what it is held to or learns from,
    kinds of rollout correction, means, advantage and speed by name."""
    training, reward, plain = config.training, config.reward, TrainingConfig()
    bound = objective_of(training)
    parts = [
        training.method,
        f"shrink {training.shrink}",
        *([] if training.objective == "clip" else [training.objective]),
    ]
    for name, value in bound.params.items():
        if name in ("eps", "beta") or name in training.objective_params or value != getattr(plain, name, value):
            parts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    if reads_reference(training):
        role = "teacher" if bound.needs.teacher else "KL to"
        parts.append(f"{role} {config.model.reference_model or 'the first model'}")
    for name in ("rollout_correction", "rollout_rejection"):
        parts += [f"{name} {getattr(training, name)}"] * (getattr(training, name) != "none")
    parts.append(training.normalization)
    if not bound.needs.teacher:
        speed = f"speed {reward.speed_goal} x {reward.speed_weight:g}"
        parts += [training.advantage, *([speed] if reward.speed_weight else [])]
    return ", ".join(parts)


def value_line(config: Config) -> str:
    training, every = config.training, config.experiment.train_value_every
    return (
        f"{config.model.value_base_model}, gam {training.gam:g}, lam {training.lam:g}, peak learning rate "
        f"{config.optimizer.params.value_learning_rate:g}, trained every {f'{every} steps' if every > 1 else 'step'}"
    )


def rows_line(config: Config) -> str:
    training, processes = config.training, world_size(config)
    if training.rows_per_update is not None:
        return f"{training.rows_per_update} rows"
    rows = training.gradient_accumulation_steps * training.batch_size_lm
    each = f"{training.gradient_accumulation_steps} x {training.batch_size_lm}"
    return f"{each} x {processes} = {rows * processes} rows" if processes > 1 else f"{each} = {rows} rows"


def precision_line(config: Config, model: DiffusionLM) -> str:
    return precision(config, model.device).replace("no", "fp32")


def model_line(config: Config, model: DiffusionLM) -> str:
    count = sum(map(elements, model.parameters()))
    start = ", random weights" if config.model.random_init else ""
    return f"{config.model.pretrained_model} ({model.family}, {count:,} parameters{start})"


def responses_line(config: Config) -> str:
    tasks, group = config.rollout.num_task_per_step, config.rollout.num_response_per_task
    return f"{tasks} prompts x {group} = {tasks * group} responses"
