"""Accuracy and speed of a model on sets of tasks, for each way of decoding: inside RL, and as eval.py."""

import gc
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs import find
from configs.schema import Config
from configs.sets import described, key_of_set
from data.tasks import Task
from data.traces import COMPARED
from models import DiffusionLM
from models.copies import num_parameters
from models.spec import CheckpointSpec
from reward.base import Reward
from runtime import curves, ranks, run_config
from runtime.files import append_jsonl, atomic_write_text
from runtime.monitor import Monitor
from runtime.report.paired import paired
from runtime.run_folder import RunFolder, run_path
from runtime.text import print_text
from sample import SamplingConfig, sampler_of
from train.checks import check_dataset, check_folder, check_room, check_set, check_trackers
from train.distributed.kind import world_size
from train.distributed.sharding import sample
from train.figures import ALL, Evaluation, area_under_parallelism, figures
from train.idle import warn_of_idle_bound, warn_of_idle_revision
from train.learner.picture_log import PictureLog
from train.memory.fit import Fit
from train.memory.report import check_memory
from train.setup.blocks import Blocks, warn_of_block_size
from train.setup.decodings import check_decodings, check_steps, sampling_entries
from train.setup.eval_sets import KEYS, EvalSet, eval_sets
from train.setup.models import RunModels, check_team, make_sampled_model, spec_of
from train.setup.pictures import Eyes, check_drawing
from train.setup.process import monitor_of, pick_device, prepare_process, run_folder, sampling_dtype
from train.setup.prompts import Prompt, completion_text, load_prompts, reward_columns, see
from train.setup.rewards import check_tasks, sandbox_row
from train.setup.sources import pinned, require_as_written, settings_of

logger = logging.getLogger(__name__)

MOST_FOLDERS = 1000


@dataclass(frozen=True)
class EvaluationSetup:
    """The model that samples, the sets of tasks with their prompts, and by name each way of decoding them.
    source_column: of the tasks, whose values get figures of their own."""

    model: DiffusionLM
    sets: Sequence[tuple[EvalSet, Sequence[Prompt]]]
    decodings: Mapping[str, SamplingConfig]
    responses_per_task: int
    eyes: Eyes
    source_column: str = ""

    @property
    def names(self) -> list[str]:
        """Of the entries: those of all sets together too, where there are several."""
        labels = [each.label for each, _ in self.sets]
        labels = [ALL, *labels] if len(labels) > 1 else labels
        return [_name(label, decoding) for label in labels for decoding in self.decodings]

    @property
    def weights(self) -> dict[str, float]:
        return {each.label: each.weight for each, _ in self.sets}


def _name(label: str, decoding: str) -> str:
    return f"{label}/{decoding}" if label else decoding


OpenReward = Callable[[EvalSet], AbstractContextManager[Reward]]


def evaluate(setup: EvaluationSetup, reward_of_set: OpenReward, monitor: Monitor) -> list[Evaluation]:
    """Samples every set under every decoding over all ranks and grades on rank 0, which alone opens rewards. Keys are
    (eval, task, sample): the same randomness at every call, so that changes show."""
    results = []
    for each, prompts in setup.sets:
        seen = see(prompts, setup.eyes, keep=False)
        with ExitStack() as stack:
            reward = stack.enter_context(reward_of_set(each)) if ranks.is_main() else None
            for decoding in setup.decodings:
                results.append(_evaluate(setup, (each, seen), decoding, reward, monitor))
    return results


def _evaluate(
    setup: EvaluationSetup,
    tasks: tuple[EvalSet, Sequence[Prompt]],
    decoding: str,
    reward: Reward | None,
    monitor: Monitor,
) -> Evaluation:
    """One set under one decoding."""
    each, prompts = tasks
    config, n, name = setup.decodings[decoding], setup.responses_per_task, _name(each.label, decoding)
    keys = [("eval", p.task.id, j) for p in prompts for j in range(n)]
    sampler = sampler_of(setup.model, config)
    sampler.forgets_pictures = True
    with monitor.progress(len(keys), f"eval {name}") as progress:
        start = time.perf_counter()
        rollouts = sample(sampler, [p.sampled for p in prompts], n, keys, progress.advance)
        seconds = time.perf_counter() - start
    completions = [completion_text(rollout, setup.model) for rollout in rollouts]
    texts = [p.text for p in prompts for _ in range(n)]
    columns = reward_columns(prompts, rollouts, setup.model)
    rewards = ranks.on_main(_grade, reward, texts, completions, columns)
    if all(reward is None for reward in rewards):
        logger.warning("eval %s: no response has a reward (%d are left out): no accuracy is given", name, len(rewards))
    return Evaluation(name, prompts, rollouts, completions, rewards, seconds, config.block_size, setup.source_column)


def _grade(
    reward: Reward | None, texts: list[str], completions: list[str], columns: dict[str, list[Any]]
) -> list[float | None]:
    assert reward is not None
    return reward(texts, completions, **columns)


def run(config: Config) -> dict[str, Any] | None:
    """eval.py: every entry of the rollout section on the sets of dataset.eval_dataset, of model.compared_with too where
    that is set. Returns metrics by entry; None for a dry run.

    Writes samples.jsonl, scores.jsonl and results.json into the run's folder, each model's when it is done; an earlier
    evaluation of the same config is replaced.
    """
    prepare_process(config)
    config = ranks.on_main(free_folder, two_models(config))
    ranks.on_main(check, config)
    if config.dry_run:
        return None
    config = ranks.on_main(pinned, config)
    setup, rows = _setup(config)
    with run_folder(config, "eval") as folder:
        if ranks.is_main():
            folder.drop_after(-1)
        monitor = monitor_of(config, folder, "eval")
        monitor.banner(f"eval {config.experiment.project}", rows)
        results = evaluate(setup, lambda each: each.reward_of(config), monitor)
        found = Found(figures(results, setup.weights), results)
        ranks.on_main(_report, config, folder, monitor, found)
        if config.model.compared_with:
            second = compared(config)
            setup = None  # type: ignore[assignment]  # its memory is the second model's
            gc.collect()
            setup, rows = _setup(second)
            monitor.banner(f"compared with {config.model.compared_with}", rows)
            found = found.with_second(evaluate(setup, lambda each: each.reward_of(config), monitor), setup.weights)
            ranks.on_main(_report, config, folder, monitor, found)
        return ranks.on_main(_end, monitor, found.figures)


@dataclass(frozen=True)
class Found:
    """Figures by entry, and what they are of: the evaluations of the model, and of the one that it is compared with,
    once that is done."""

    figures: dict[str, dict[str, float]]
    results: Sequence[Evaluation]
    other: Sequence[Evaluation] = ()

    def with_second(self, other: Sequence[Evaluation], weights: Mapping[str, float]) -> "Found":
        """With the second model's, whose entries begin with COMPARED."""
        added = {f"{COMPARED}/{name}": entry for name, entry in figures(other, weights).items()}
        named = [replace(result, name=f"{COMPARED}/{result.name}") for result in other]
        return Found(self.figures | added, self.results, named)


def two_models(config: Config) -> Config:
    """The config with model.pretrained_model=A,B as a model and the one that it is compared with. ValueError for
    more."""
    given = config.model.pretrained_model
    names = [name.strip() for name in given.split(",")]
    if len(names) == 1 or find(given).exists():
        return config
    if len(names) > 2 or not all(names) or config.model.compared_with:
        raise ValueError(f"model.pretrained_model={given}: eval.py compares two checkpoints, model=A,B.")
    return replace(config, model=replace(config.model, pretrained_model=names[0], compared_with=names[1]))


def compared(config: Config) -> Config:
    """The config of the second model alone."""
    name = config.model.compared_with
    assert name is not None
    return replace(config, model=replace(config.model, pretrained_model=name, compared_with=None))


def free_folder(config: Config) -> Config:
    """The config with the first of the names experiment.project, NAME-2, NAME-3, ... whose folder holds this evaluation
    or none; a line says so, but of a dry run. experiment.overwrite empties the first."""
    project = config.experiment.project
    if config.experiment.overwrite:
        return config
    for i in range(1, MOST_FOLDERS):
        named = replace(config.experiment, project=project if i == 1 else f"{project}-{i}")
        tried = replace(config, experiment=named)
        path = run_path(tried)
        if (
            not (path / "config.yaml").is_file()
            or not run_config.changes(path / "config.yaml", settings_of(tried, "eval")).refused
        ):
            if i > 1 and not config.dry_run:
                logger.warning("%s holds another evaluation: this one goes to %s", run_path(config), path)
            return tried
    return config


def _setup(config: Config) -> tuple[EvaluationSetup, dict[str, str]]:
    """The model with its prompts and decodings, and what the start shows of them."""
    device, spec = pick_device(config.model.device), spec_of(config)
    fit = Fit.of(config, RunModels.of(config, spec, "eval"))
    model = make_sampled_model(config, sampling_dtype(config, device))
    blocks = Blocks.of(config, model.spec, "eval")
    decodings = sampling_entries(
        *(fit.config.rollout, model, blocks.sampled),
        seed=config.training.seed,
        deterministic=config.experiment.deterministic,
    )
    for block_size in blocks.sampled:
        warn_of_block_size(block_size, model.spec)
    sets = [
        (each, [replace(prompt, of=each.label) for prompt in load_prompts(config, each.source, model)])
        for each in eval_sets(config, "eval")
    ]
    eyes, source = Eyes.of(config, model), config.dataset.source_column
    setup = EvaluationSetup(model, sets, decodings, config.rollout.num_response_per_task, eyes, source)
    return setup, _banner_rows(config, setup, spec.folder) | fit.rows()


def check(config: Config) -> Path:
    """Everything that can be known to fail before a model is loaded; the model's folder. A dry run prints sizes."""
    pick_device(config.model.device)
    check_decodings(config.rollout, config.evaluation)
    warn_of_idle_revision(config.rollout)
    warn_of_idle_bound(config.rollout)
    spec, tasks = _check_model(config)
    models = [(config, spec)]
    if config.model.compared_with:
        models.append((second := compared(config), _check_model(second)[0]))
    check_folder(config, "eval")
    check_trackers(config)
    for each, of_set in tasks:
        with each.reward_of(config) as reward:
            check_tasks(reward, of_set, key_of_set(KEYS["eval"], each.label), each.source.decode)
    if config.dry_run:
        _print_plan(config, [len(of_set) for _, of_set in tasks])
    for each_config, of_model in models:
        check_memory(each_config, RunModels.of(each_config, of_model, "eval"))
    return spec.folder


def _check_model(config: Config) -> tuple[CheckpointSpec, list[tuple[EvalSet, list[Task]]]]:
    """The model's spec, and the tasks of each set."""
    require_as_written(spec := spec_of(config))
    check_drawing(config, config.rollout, spec.family)
    check_steps(config.rollout, Blocks.of(config, spec, "eval").sampled)
    check_room(spec, config.rollout)
    check_team(config, spec, world_size(config))
    sets = eval_sets(config, "eval")
    if not sets:
        check_dataset(config, "", KEYS["eval"])
    return spec, [(each, check_set(config, each.source, KEYS["eval"], spec)) for each in sets]


def _print_plan(config: Config, tasks: Sequence[int]) -> None:
    """The arithmetic of an evaluation, for a dry run. tasks: of each set."""
    count = sum(min(of_set, config.dataset.max_tasks or of_set) for of_set in tasks)
    entries = max((len(v) for v in config.rollout.parallel_lists().values()), default=1)
    each = config.rollout.num_response_per_task
    print_text(f"dry run of {config.experiment.project}: everything named exists and fits together")
    print_text(
        f"  data    {described(config.dataset.eval_dataset)}: {count:,} tasks x {each} responses x {entries} entries = "
        f"{count * each * entries:,} responses of up to {config.rollout.max_new_tokens} tokens"
    )


def _report(config: Config, folder: RunFolder, monitor: Monitor, found: Found) -> None:
    """Writes what the newest of the models did, and the figures of all that are done."""
    newest = found.other or found.results
    if not found.other:
        (folder.path / "samples.jsonl").unlink(missing_ok=True)
    for result in newest:
        PictureLog(folder.path).add(prompt.images for prompt in result.prompts)
        append_jsonl(folder.path / "samples.jsonl", result.samples(config.rollout.output_unmasking_history))
        append_jsonl(folder.scores, [result.scores(0)])
    metrics = found.figures
    atomic_write_text(folder.path / "results.json", json.dumps(metrics, indent=2) + "\n")
    for name, entry in metrics.items():
        if name.startswith(f"{COMPARED}/") == bool(found.other):
            monitor.evaluation(0, entry, name=name, quiet=True)
    monitor.evaluation_table(0, metrics)
    monitor.event(table(metrics))
    _report_curves(folder, monitor, metrics, asked=isinstance(config.rollout.threshold, list))
    if found.other:
        _report_pairs(folder, monitor, found)


def _end(monitor: Monitor, metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The main process's figures, for every rank: their clocks differ."""
    monitor.final(metrics)
    monitor.close()
    return metrics


def _report_curves(
    folder: RunFolder, monitor: Monitor, metrics: Mapping[str, Mapping[str, float]], *, asked: bool
) -> None:
    """Accuracy over tokens per forward, of each set whose decodings differ in it: curve.png, curve.json, a line. asked:
    another line says why there is none."""
    by_set: dict[str, list[tuple[float, float, float]]] = {}
    for name, entry in metrics.items():
        if "accuracy" in entry:
            point = entry["tokens_per_forward"], entry["accuracy"], entry["stderr"]
            by_set.setdefault(name.rpartition("/")[0], []).append(point)
    if asked and not by_set:
        monitor.event("no curve: no response has a reward")
    for label in [label for label, points in by_set.items() if len({r for r, _, _ in points}) == 1]:
        points = by_set.pop(label)
        if asked and len(points) > 1:
            same = f"all {len(points)} decodings have {points[0][0]:.4g} tokens per forward"
            monitor.event(f"no curve{f' of {label}' if label else ''}: {same}")
    by_set = {label: sorted(points) for label, points in by_set.items()}
    if not by_set:
        return
    areas = {label: area_under_parallelism([(r, 100 * y) for r, y, _ in by_set[label]]) for label in by_set}
    rows = {label: {"aup": areas[label], "points": by_set[label]} for label in by_set}
    atomic_write_text(folder.path / "curve.json", json.dumps(rows, indent=1) + "\n")
    try:
        curves.draw_tradeoff(by_set, folder.path / "curve.png", folder.path.name)
    except Exception as error:  # a picture is worth no evaluation
        monitor.warning(f"curve.png was not drawn: {type(error).__name__}: {error}")
    shown = ", ".join(f"{f'{label} ' if label else ''}{area:.1f}" for label, area in areas.items())
    monitor.event(f"area under accuracy over tokens per forward (AUP, percent): {shown}")


def _report_pairs(folder: RunFolder, monitor: Monitor, found: Found) -> None:
    """The second model less the first, entry by entry, on the same draws: comparison.json and lines."""
    pairs = {}
    for first, second in zip(found.results, found.other, strict=True):
        pair = paired(first.scores(0)["scores"], second.scores(0)["scores"])
        if pair is None:
            monitor.event(f"{first.name}: no response that both models answered has a reward")
            continue
        pairs[first.name] = vars(pair)
        difference = f"{pair.difference:+.4f} ± {pair.stderr:.4f}, 95% [{pair.low:+.4f}, {pair.high:+.4f}]"
        test = f"gained {pair.gained}, lost {pair.lost}, p {pair.p:.3g} (McNemar)"
        monitor.event(f"{first.name}: {pair.first:.4f} -> {pair.second:.4f}, difference {difference}, {test}")
    atomic_write_text(folder.path / "comparison.json", json.dumps(pairs, indent=1) + "\n")


def table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Entries by metrics, aligned; "-" where an entry has no such number."""
    names = max((list(entry) for entry in metrics.values()), key=len)
    rows = [
        ["", *metrics],
        *([name, *(f"{entry[name]:.4g}" if name in entry else "-" for entry in metrics.values())] for name in names),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)


def _banner_rows(config: Config, setup: EvaluationSetup, folder_of_model: Path) -> dict[str, str]:
    """What the start of an evaluation shows."""
    model = setup.model
    return {
        "model": f"{folder_of_model} ({model.family}, {num_parameters(model):,} parameters)",
        "device": f"{model.device}, {str(model.dtype).removeprefix('torch.')}",
        "tasks": ", ".join(f"{each.source.name}: {len(prompts):,}" for each, prompts in setup.sets),
        "samples": f"{setup.responses_per_task} a task",
        "entries": ", ".join(setup.decodings),
        **sandbox_row(config, [each.source.data_type for each, _ in setup.sets]),
        "seed": str(config.training.seed),
    }
