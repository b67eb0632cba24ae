"""One result, whatever the number of ranks: real processes with gloo, against one process."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import rank_work
import torch
import yaml
from end_to_end import EVAL, RL, SFT, Workshop, read_jsonl, text_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from rank_jobs import run_ranks

from models import load_model
from models.lora import Adapters
from runtime.child import FailedElsewhere
from train.distributed.sharding import deal

TOLERANCE = 1e-5
BY_RANKS = re.compile("micro_batches|^time/|^memory/|per_second|^seconds$")


def assert_same(got, want, where="", tolerance=TOLERANCE):
    if isinstance(want, dict):
        got, want = ({name: row[name] for name in row if not BY_RANKS.search(str(name))} for row in (got, want))
        assert got.keys() == want.keys(), where
        for name in want:
            assert_same(got[name], want[name], f"{where} {name}", tolerance)
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), where
        for i, (mine, other) in enumerate(zip(got, want, strict=True)):
            assert_same(mine, other, f"{where} {i}", tolerance)
    elif torch.is_tensor(want):
        assert float((got - want).abs().max()) <= tolerance, where
    elif isinstance(want, float) and math.isfinite(want):
        assert abs(got - want) <= tolerance * max(1.0, abs(want)), f"{where}: {got} is not {want}"
    elif not isinstance(want, float):
        assert got == want, where


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 50)), min_size=1, max_size=12), st.integers(1, 6))
def test_rows_are_dealt_whole_once_and_evenly(keys_and_tokens, world):
    rows = [SimpleNamespace(key=key, num_tokens=tokens) for key, tokens in keys_and_tokens]
    which = list(range(len(rows)))[1:]
    dealt = deal(rows, which, world)
    assert len(dealt) == world and sorted(i for part in dealt for i in part) == which
    owners = {rows[i].key: set() for i in which}
    for owner, part in enumerate(dealt):
        for i in part:
            owners[rows[i].key].add(owner)
    assert all(len(found) == 1 for found in owners.values())
    loads = [sum(rows[i].num_tokens for i in part) for part in dealt]
    responses = [sum(rows[i].num_tokens for i in which if rows[i].key == key) for key in owners]
    assert max(loads) - min(loads) <= max(responses, default=0)


def one_process(tmp_path, function, *arguments):
    return run_ranks(tmp_path / "one", 1, function, *arguments)[0]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_updates_do_not_depend_on_the_number_of_ranks(tmp_path, world):
    """10 responses in updates of about 3: the last is smaller, and on 4 ranks some ranks have no row."""
    want = one_process(tmp_path, rank_work.rl_updates)
    assert want[0][0]["updates"] >= 2
    for got in run_ranks(tmp_path / "many", world, rank_work.rl_updates):
        assert_same(got, want)


CASES = {
    "value": {"with_value": True},
    "full": {"family": "dream"},
    "experts": {"family": "sdar_moe"},
    "llada2": {"family": "llada2"},
    "reference": {"normalization": "reference"},
    "tokens": {"normalization": "token_mean", "logp_old": "recompute", "num_train_epochs": 2},
    "clipped": {"max_grad_norm": 0.1},
    "one response": {"lengths": (5,), "n": 1},
}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_further_updates_do_not_depend_on_the_number_of_ranks(tmp_path, case):
    want = one_process(tmp_path, call_rl_updates, CASES[case])
    for world in (2, 4) if case in ("value", "one response") else (2,):
        for got in run_ranks(tmp_path / "many", world, call_rl_updates, CASES[case]):
            assert_same(got, want)


def call_rl_updates(named):
    return rank_work.rl_updates(**named)


@pytest.mark.slow
def test_ranks_skip_an_update_that_is_not_finite_together(tmp_path):
    want = one_process(tmp_path, call_rl_updates, {"poison": 3})
    assert want[0][0]["updates_skipped"] >= 1 and want[0][0]["updates"] >= 1
    for got in run_ranks(tmp_path / "many", 2, call_rl_updates, {"poison": 3}):
        assert_same(got, want)


@pytest.mark.slow
def test_rollouts_come_from_a_common_queue(tmp_path):
    """The slow rank takes fewer; who took what does not enter."""
    want, _, told = one_process(tmp_path, rank_work.rollouts_of_all)
    assert told == len(want) == 48
    got = run_ranks(tmp_path / "many", 2, rank_work.rollouts_of_all, 1)
    for rollouts, _, told in got:
        assert [r.key for r in rollouts] == [r.key for r in want] and told == 48
        for mine, other in zip(rollouts, want, strict=True):
            assert (mine.canvas_ids, mine.canvas_step_map) == (other.canvas_ids, other.canvas_step_map)
            assert np.allclose(mine.canvas_logprobs, other.canvas_logprobs, atol=TOLERANCE)
    taken = [count for _, count, _ in got]
    assert sum(taken) == 48 and taken[1] < taken[0]


@pytest.mark.slow
def test_in_deterministic_mode_who_took_what_does_not_change_a_bit(tmp_path):
    first, second = (run_ranks(tmp_path / str(i), 2, call_rollouts, {"slow_rank": i}) for i in (0, 1))
    assert first[0][0] == second[0][0] == first[1][0]


def call_rollouts(named):
    return rank_work.rollouts_of_all(deterministic=True, temperature=1.0, **named)


@pytest.mark.slow
def test_collectives(tmp_path):
    got = run_ranks(tmp_path, 2, rank_work.shares)
    for sums, gathered, _ in got:
        assert sums == {"a": 2.0, "only 0": 2.0, "only 1": 2.0} and gathered == ["", "x" * 1000]
    assert sorted(n for _, _, numbers in got for n in numbers) == [2, 4, 6, 8, 10, 12]
    main, other = run_ranks(tmp_path, 2, rank_work.fails_on_main)
    assert isinstance(main, ValueError) and isinstance(other, FailedElsewhere)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_an_update_that_one_rank_is_asked_to_stop_is_given_up_by_all(tmp_path, world):
    assert run_ranks(tmp_path, world, rank_work.update_given_up) == [(True, True, True)] * world


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True])
def test_other_weights_on_a_rank_stop_the_job(tmp_path, adapters):
    for error in run_ranks(tmp_path, 2, rank_work.other_weights, adapters):
        assert isinstance(error, RuntimeError) and "weights of rank 1 differ" in str(error)


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_named(tmp_path):
    with pytest.raises(AssertionError, match="ranks \\[1\\] of 2 ended without a result") as failure:
        run_ranks(tmp_path, 2, rank_work.a_rank_never_comes, timeout=20)
    assert "rank 1" in str(failure.value).lower() or "Ranks 1" in str(failure.value)


SMOOTH = ("optimizer.params.epsilon=1e-4",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        (),
        pytest.param(("model.value_base_model=${model.pretrained_model}",), marks=pytest.mark.long),
        pytest.param(("rollout.edit_threshold=0.0", "rollout.max_post_steps=2"), marks=pytest.mark.long),
    ],
    ids=["policy", "value", "edits"],
)
def test_an_rl_run_on_1_2_and_4_ranks(tmp_path, model_folder, extra):
    shop = Workshop(tmp_path, model_folder)
    arguments = (*SMOOTH, *extra, "rollout.num_task_per_step=5", "training.rows_per_update=8")
    results = {}
    for world in (1, 2, 4):
        got = run_ranks(
            tmp_path / "job",
            world,
            rank_work.whole_run,
            "rl",
            shop.arguments(RL, *arguments, f"experiment.project=r{world}"),
        )
        assert not any(isinstance(result, BaseException) for result in got), got
        results[world] = shop.runs / f"r{world}"
    for world in (2, 4):
        assert_same(read_jsonl(results[world] / "metrics.jsonl"), read_jsonl(results[1] / "metrics.jsonl"))
        rollouts = [
            [
                {k: row[k] for k in ("step", "task", "completion", "reward", "key")}
                for row in read_jsonl(folder / "rollouts.jsonl")
            ]
            for folder in (results[world], results[1])
        ]
        assert rollouts[0] == rollouts[1]
        weights = [load_model(folder / "ckpt" / "optimized").state_dict() for folder in (results[world], results[1])]
        assert_same(dict(weights[0]), dict(weights[1]))
        assert sorted(p.name for p in results[world].iterdir()) == sorted(p.name for p in results[1].iterdir())


@pytest.mark.long
@pytest.mark.slow
def test_an_sft_run_on_1_2_and_4_ranks(tmp_path, model_folder):
    shop = Workshop(tmp_path, model_folder)
    for world in (1, 2, 4):
        arguments = (
            *SMOOTH,
            f"experiment.project=s{world}",
            "training.num_train_epochs=2",
            "training.rows_per_update=4",
        )
        arguments = shop.arguments(SFT, *arguments)
        got = run_ranks(tmp_path / "job", world, rank_work.whole_run, "sft", arguments)
        assert not any(isinstance(result, BaseException) for result in got), got
    one, *others = (shop.runs / f"s{world}" for world in (1, 2, 4))
    for folder in others:
        assert_same(read_jsonl(folder / "metrics.jsonl"), read_jsonl(one / "metrics.jsonl"))
        weights = [load_model(path / "ckpt" / "optimized").state_dict() for path in (folder, one)]
        assert_same(dict(weights[0]), dict(weights[1]))


@pytest.mark.long
@pytest.mark.slow
def test_fine_tuning_on_canvases_on_1_and_2_ranks(tmp_path):
    """At a small rate: a random network of this family makes a thousandfold of any rounding of its weights."""
    shop = Workshop(tmp_path, text_checkpoint(tmp_path / "model", "diffusion_gemma"))
    masks = (
        "training.method=uniform",
        "training.lower_p=0.001",
        "training.upper_p=1",
        "training.mask_times_per_sample=1",
    )
    for world in (1, 2):
        arguments = shop.arguments(
            SFT,
            *SMOOTH,
            *masks,
            f"experiment.project=c{world}",
            "training.rows_per_update=4",
            "optimizer.params.learning_rate=1e-4",
        )
        got = run_ranks(tmp_path / "job", world, rank_work.whole_run, "sft", arguments)
        assert not any(isinstance(result, BaseException) for result in got), got
    one, two = (shop.runs / f"c{world}" for world in (1, 2))
    assert_same(read_jsonl(two / "metrics.jsonl"), read_jsonl(one / "metrics.jsonl"), tolerance=1e-3)
    weights = [load_model(path / "ckpt" / "optimized").state_dict() for path in (two, one)]
    assert_same(dict(weights[0]), dict(weights[1]))


@pytest.mark.slow
def test_an_evaluation_is_merged_without_loss_or_duplication(tmp_path, model_folder):
    shop = Workshop(tmp_path, model_folder)
    samples, results = [], []
    for world in (1, 2, 4):
        arguments = shop.arguments(EVAL, f"experiment.project=e{world}")
        got = run_ranks(tmp_path / "job", world, rank_work.evaluation_run, arguments)
        assert all(result == got[0] for result in got)
        samples.append(read_jsonl(shop.runs / f"e{world}" / "samples.jsonl"))
        results.append(yaml.safe_load((shop.runs / f"e{world}" / "results.json").read_text()))
    for other, result in zip(samples[1:], results[1:], strict=True):
        assert_same(other, samples[0])
        assert_same(result, results[0])


@pytest.mark.long
@pytest.mark.slow
def test_another_world_size_goes_on_with_a_run(tmp_path, model_folder):
    """Updates keep the size that they had on the first."""
    shop = Workshop(tmp_path, model_folder)
    arguments = (*SMOOTH, "experiment.total_step=4", "training.gradient_accumulation_steps=1")
    run_ranks(
        tmp_path / "job", 2, rank_work.whole_run, "rl", shop.arguments(RL, *arguments, "experiment.project=straight")
    )
    for world, last in ((2, 2), (1, 3), (4, 4)):
        project = shop.arguments(RL, *arguments, "experiment.project=resumed")
        run_ranks(tmp_path / "job", world, run_until, project, last)
    straight, resumed = shop.runs / "straight", shop.runs / "resumed"
    assert_same(read_jsonl(resumed / "metrics.jsonl"), read_jsonl(straight / "metrics.jsonl"))
    weights = [load_model(folder / "ckpt" / "optimized").state_dict() for folder in (resumed, straight)]
    assert_same(dict(weights[0]), dict(weights[1]))


ADAPTERS = (*SMOOTH, "lora.rank=4", "lora.dropout=0.2", "training.rows_per_update=8")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rl", "sft"])
def test_adapters_on_one_rank_on_two_and_resumed_on_another_number(tmp_path, model_folder, kind):
    """What dropout leaves out is no matter of ranks either."""
    shop, text = Workshop(tmp_path, model_folder), {"rl": RL, "sft": SFT}[kind]
    limit = ("experiment.total_step=3",) if kind == "rl" else ("training.num_train_epochs=3", "experiment.save_every=1")
    for project, parts in {"one": ((1, 99),), "two": ((2, 99),), "resumed": ((2, 1), (1, 2), (2, 99))}.items():
        arguments = shop.arguments(text, *ADAPTERS, *limit, f"experiment.project={project}")
        for world, last in parts:
            got = run_ranks(tmp_path / "job", world, run_until, arguments, last, kind)
            assert last < 99 or not any(isinstance(result, BaseException) for result in got), got
            assert last == 99 or all(isinstance(result, Stop) for result in got), got
    one, *others = (shop.runs / name for name in ("one", "two", "resumed"))
    trained = dict(load_model(one / "ckpt" / "optimized").state_dict())
    fresh = {name: weight for name, weight in trained.items() if ".lora_B" in name}
    assert fresh and all(float(weight.abs().max()) > 100 * TOLERANCE for weight in fresh.values())
    for folder in others:
        assert_same(read_jsonl(folder / "metrics.jsonl"), read_jsonl(one / "metrics.jsonl"))
        assert_same(dict(load_model(folder / "ckpt" / "optimized").state_dict()), trained)


@pytest.mark.slow
def test_a_folder_of_adapters_is_evaluated_on_two_ranks_as_on_one(tmp_path, model_folder):
    shop, adapters = Workshop(tmp_path, model_folder), tmp_path / "adapters"
    model = load_model(model_folder)
    model.add_adapters(Adapters(4, 8.0, dropout=0.2), model_folder, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    model.save(adapters)
    samples = []
    for project, world, folder in (("base", 1, model_folder), ("one", 1, adapters), ("two", 2, adapters)):
        arguments = shop.arguments(EVAL, f"experiment.project={project}", f"model.pretrained_model={folder}")
        run_ranks(tmp_path / "job", world, rank_work.evaluation_run, arguments)
        samples.append(read_jsonl(shop.runs / project / "samples.jsonl"))
    base, one, two = samples
    assert_same(two, one)
    assert [row["completion"] for row in one] != [row["completion"] for row in base]


class Stop(Exception):
    pass


def run_until(arguments, last, kind="rl"):
    """A run that dies on every rank when RL step, or update of fine-tuning, `last` + 1 begins."""
    from train import sft
    from train.collect import Collector

    sample, update = Collector.sample, sft.FineTuning.update

    def dies(self, prompts, step):
        if step > last:
            raise Stop
        return sample(self, prompts, step)

    def update_dies(self, rows, step):
        if step > last:
            raise Stop
        return update(self, rows, step)

    Collector.sample, sft.FineTuning.update = dies, update_dies
    return rank_work.whole_run(kind, arguments)


def run_that_dies_in_the_updates_of(arguments, step):
    from train.learner.policy import Policy

    train = Policy.train
    Policy.train = lambda self, batch, at, progress: _stop() if at == step else train(self, batch, at, progress)
    return rank_work.whole_run("rl", arguments)


def _stop():
    raise Stop


def run_that_samples_only(arguments, allowed):
    from train.collect import Collector

    sample = Collector.sample

    def checked(self, prompts, step):
        assert step in allowed, f"step {step} is sampled again"
        return sample(self, prompts, step)

    Collector.sample = checked
    return rank_work.whole_run("rl", arguments)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("world", [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_step_that_died_in_its_updates_goes_on_from_its_rollouts(tmp_path, model_folder, world):
    """On 2 ranks step 2, right after a checkpoint, and step 3, whose weights came of the same updates again, bit for
    bit; another number of ranks takes step 2."""
    shop = Workshop(tmp_path, model_folder)
    arguments = (*SMOOTH, "experiment.total_step=3", "experiment.save_every=1", "training.rows_per_update=8")
    arguments = (*arguments, "experiment.deterministic=true", "evaluation.eval_dataset=''")
    run_ranks(
        tmp_path / "job", 2, rank_work.whole_run, "rl", shop.arguments(RL, *arguments, "experiment.project=straight")
    )
    typed, died = shop.arguments(RL, *arguments, "experiment.project=died"), 2 if world == 1 else 3
    if world == 2:  # the checkpoint of step 2 is lost
        run_ranks(tmp_path / "job", 2, run_that_dies_in_the_updates_of, typed, 3)
        (shop.runs / "died" / "ckpt" / "step-000002" / "model.safetensors").unlink()
    else:
        run_ranks(tmp_path / "job", 2, run_that_dies_in_the_updates_of, typed, 2)
    before = read_jsonl(shop.runs / "died" / "rollouts.jsonl")
    assert {row["step"] for row in before} == set(range(1, died + 1))
    got = run_ranks(tmp_path / "job", world, run_that_samples_only, typed, [3] if world == 1 else [])
    assert not any(isinstance(result, BaseException) for result in got), got
    straight, resumed = shop.runs / "straight", shop.runs / "died"
    assert_same(read_jsonl(resumed / "metrics.jsonl"), read_jsonl(straight / "metrics.jsonl"))
    rollouts = read_jsonl(resumed / "rollouts.jsonl")
    assert rollouts[: len(before)] == before and [row["step"] for row in rollouts] == [1] * 16 + [2] * 16 + [3] * 16
    weights = [load_model(folder / "ckpt" / "optimized").state_dict() for folder in (resumed, straight)]
    assert_same(dict(weights[0]), dict(weights[1]))
    if world == 2:
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
