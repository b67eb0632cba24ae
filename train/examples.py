"""The examples of a fine-tuning, set after set, and those that are held out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from configs import naming
from configs.schema import Config
from configs.sets import named_sets, shares
from configs.tree import get
from data.preferences import Pair, load_pairs
from data.tasks import Example, load_examples
from models.spec import CheckpointSpec
from train.algorithm.masking import Method
from train.checks import check_dataset
from train.held_out import KEY as HELD_OUT
from train.held_out import MORE_IS_BETTER, split_off
from train.setup.examples import TokenizedExample, responses_of
from train.setup.pictures import image_root
from train.setup.traces import chosen_traces, of_first_tasks, right_and_wrong

DATA = "dataset.optimization_data"


def examples_of(config: Config, spec: CheckpointSpec, method: Method) -> tuple[list[Example], list[Example]]:
    """Those that are trained, and those that are held out; under DPO a pair is two, chosen and rejected. ValueError
    where keys about them do not go together."""
    dataset = config.dataset
    check_held_out(config)
    examples = _read(config, DATA, spec, method)
    if dataset.validation_dataset:
        return examples, _read(config, HELD_OUT, spec, method)
    return split_off(examples, dataset.validation_split, config.training.seed)


def check_held_out(config: Config) -> None:
    """ValueError where keys about held-out examples do not go together; no example is read."""
    dataset, experiment = config.dataset, config.experiment
    if dataset.validation_split and dataset.validation_dataset:
        raise ValueError("dataset.validation_split and dataset.validation_dataset both hold examples out: keep one.")
    for each in named_sets(HELD_OUT, dataset.validation_dataset, dataset.data_type):
        check_dataset(config, each.name, HELD_OUT)
    if experiment.early_stopping is None:
        return
    if not dataset.validation_split and not dataset.validation_dataset:
        raise ValueError(
            "experiment.early_stopping needs a held-out loss: set dataset.validation_split or validation_dataset."
        )
    key = HELD_OUT if dataset.validation_dataset else DATA
    labels = {each.label for each in named_sets(key, get(config, key), dataset.data_type)} - {""}
    of_pairs = MORE_IS_BETTER if responses_of(config.training) == 2 else ()
    known = ("auto", "loss", "nll", *of_pairs, *(f"nll({label})" for label in sorted(labels)))
    if experiment.early_stopping_metric not in known:
        raise ValueError(
            f"experiment.early_stopping_metric={experiment.early_stopping_metric}: choose from {', '.join(known)}."
        )


def _read(config: Config, key: str, spec: CheckpointSpec, method: Method) -> list[Example]:
    """The examples of the sets that a key names, set after set."""
    dataset, given = config.dataset, get(config, key)
    sets = named_sets(key, given, dataset.data_type) or named_sets(key, [""], dataset.data_type)
    shares(key, sets, [1] * len(sets))
    found: list[Example] = []
    for each in sets:
        path = check_dataset(config, each.name, key)
        with naming(key):
            root, columns = image_root(dataset, path, spec.family), {**dataset.columns, **each.columns}
            read = load_pairs if responses_of(config.training) == 2 else load_examples
            rows = read(path, columns=columns, image_root=root)
        found += [replace(example, of=each.label) for example in _examples(rows, config, spec, method, key)]
    return found


def _examples(
    rows: Sequence[Example | Pair], config: Config, spec: CheckpointSpec, method: Method, key: str
) -> list[Example]:
    """The examples that the rows of a file are, of the first dataset.max_tasks; a model's responses those of them that
    are used, of the first so many tasks that have one. Where these become pairs, of the first so many of the file."""
    examples = [side for row in rows for side in ((row.chosen, row.rejected) if isinstance(row, Pair) else (row,))]
    most, each = config.dataset.max_tasks, responses_of(config.training)
    are_traces = any(example.trace is not None for example in examples)
    if are_traces or key == DATA:
        examples = chosen_traces(examples, config, spec, method, key)
    if are_traces and each == 2:
        return right_and_wrong(examples, config.dataset.pairs_per_task, key, most)
    return of_first_tasks(examples, most) if each == 1 else examples[: most * each or None]


def mixture_of(config: Config, samples: Sequence[TokenizedExample]) -> tuple[tuple[int, float], ...]:
    """(examples, weight) of each set. ValueError where one has none that can be trained."""
    sets = named_sets(DATA, config.dataset.optimization_data, config.dataset.data_type)
    counts = Counter(sample.of for sample in samples)
    for each in sets:
        if not counts[each.label]:
            raise ValueError(f"{DATA}: no example of {each.name} is left: all are dropped, for what the warnings say.")
    sizes = [counts[each.label] for each in sets]
    return tuple(zip(sizes, shares(DATA, sets, sizes), strict=True))
