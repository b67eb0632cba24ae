"""Every family through train/sft.py, rl.py and eval.py, with each of its methods: weights move and are kept."""

import shutil

import pytest
import torch
from end_to_end import EVAL, RL, SFT, Workshop, read_jsonl, text_checkpoint
from helpers import FAMILIES as EVERY_FAMILY
from helpers import random_prompts
from safetensors.torch import load_file

from configs import load_config
from models import load_model, load_value_model
from runtime.monitor import Monitor
from sample import Sampler, SamplingConfig
from train import evaluation, rl, sft
from train.algorithm.masking import METHODS

FAMILIES = tuple(family for family in EVERY_FAMILY if family != "lladav")  # in test_end_to_end_pictures
MIXTURES = ("sdar_moe", "llada2")
RL_METHODS, SFT_METHODS = ([name for name in METHODS if getattr(METHODS[name], command)] for command in ("rl", "sft"))
SHIFTED = ("dream",)


def cases(methods, main, thorough=("sdar", "llada")):
    """Every family with every method. CI runs every family with the main method, and every method with a family of
    blocks and one of full attention; the rest is long. Uniform noise is of canvases (test_end_to_end_canvas.py)."""
    pairs = [(f, m) for f in FAMILIES for m in methods if m != "uniform" and (m != "ar" or f in SHIFTED)]
    return [pytest.param(f, m, marks=() if m in (main, "ar") or f in thorough else pytest.mark.long) for f, m in pairs]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Family -> its folder, made when first asked for."""
    folders = {}

    def made(family):
        if family not in folders:
            folders[family] = text_checkpoint(tmp_path_factory.mktemp("models") / family, family)
        return folders[family]

    return made


@pytest.fixture
def shop_of(tmp_path, checkpoints, monkeypatch):
    monkeypatch.setattr(Monitor, "curves", lambda monitor: None)
    return lambda family: Workshop(tmp_path, checkpoints(family))


def still(before, after):
    """Names of the original layout whose weights did not move; of experts, that none of a layer's did. The bias of
    LLaDA2's router never does."""
    first, second = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert first.keys() == second.keys()
    stayed = {name for name in first if torch.equal(first[name], second[name])}
    biases = {name for name in first if name.endswith("expert_bias")}
    assert biases <= stayed
    experts = {name for name in stayed if ".experts." in name}
    layers = {name.split(".experts.")[0] for name in first if ".experts." in name}
    assert all(any(n.startswith(layer + ".experts") and n not in stayed for n in first) for layer in layers)
    return stayed - experts - biases


def answers(model):
    prompts = random_prompts([3, 6], vocab_size=40, avoid=(0, 1, 2))
    config = SamplingConfig(max_new_tokens=8, block_size=4, threshold=0.4, temperature=1.0)
    return [rollout.canvas_ids for rollout in Sampler(model, config).generate(prompts)]


def assert_reads_back(folder, again):
    """Saved, read, saved: the same model, and the same bytes under the same names."""
    model = load_model(folder)
    model.save(again)
    assert answers(load_model(again)) == answers(model)
    first, second = (load_file(f / "model.safetensors") for f in (folder, again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def run_eval(shop, family, model):
    arguments = [f"model_base={family}", f"model.pretrained_model={model}", "rollout.block_size=4"]
    metrics = evaluation.run(load_config(shop.arguments(EVAL, *arguments)))
    rows = read_jsonl(shop.runs / "eval" / "samples.jsonl")
    assert len(rows) == 3 * 2 and all(values["tokens_per_forward"] > 0 for values in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), cases(SFT_METHODS, "semi-ar"))
def test_one_step_of_sft(shop_of, family, method, tmp_path):
    shop = shop_of(family)
    arguments = [f"training.method={method}", "training.num_train_epochs=1", "training.batch_size_lm=6"]
    arguments += ["training.block_size=4", f"model.model_base={family}"]
    summary = sft.run(load_config(shop.arguments(SFT, *arguments)))
    assert summary["steps"] == 1
    (row,) = read_jsonl(shop.runs / "sft" / "metrics.jsonl")
    assert row["grad_norm"] > 0 and row["trained_tokens"] > 0 and row["updates_skipped"] == 0
    assert ("experts/max_load" in row) == (family in MIXTURES)
    trained = shop.runs / "sft" / "ckpt" / "optimized"
    assert still(shop.model, trained) == set()
    assert_reads_back(trained, tmp_path / "again")
    run_eval(shop, family, trained)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), cases(RL_METHODS, "TraceRL"))
def test_two_steps_of_rl(shop_of, family, method, tmp_path):
    shop = shop_of(family)
    arguments = [f"training.method={method}", "training.mask_times_per_sample=2", f"model.model_base={family}"]
    arguments += ["evaluation.block_size=4", "evaluation.top_k=0", "experiment.eval_first=false"]
    summary = rl.run(load_config(shop.arguments(RL, *arguments)))
    rows = [row for row in read_jsonl(shop.runs / "rl" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2] and summary["steps"] == 2
    for row in rows:
        assert row["updates"] >= 1 and row["grad_norm"] > 0 and row["reward/std"] > 0
        assert row.get("experts/max_load", 0.0) >= (1.0 if family in MIXTURES else 0.0)
        assert ("mismatch_kl" in row) == (method == "TraceRL") and row.get("mismatch_kl", 0.0) < 1e-9
    folder = shop.runs / "rl" / "ckpt"
    assert still(shop.model, folder / "step-000001") == still(folder / "step-000001", folder / "optimized") == set()
    assert_reads_back(folder / "optimized", tmp_path / "again")
    run_eval(shop, family, folder / "optimized")


@pytest.mark.slow
def test_rl_by_the_experts_of_sampling_goes_on_where_it_was_killed(shop_of):
    """A step whose rollouts are on disk, its updates not, is trained from the file."""
    shop = shop_of("llada2")
    arguments = ["training.replay_routing=true", "evaluation.eval_dataset=''", "training.block_size=4"]
    rl.run(load_config(shop.arguments(RL, *arguments)))
    folder = shop.runs / "rl"
    want = load_file(folder / "ckpt" / "step-000002" / "model.safetensors")
    assert all(row["routing"]["noisy"]["shape"][2:] == [1, 2] for row in read_jsonl(folder / "rollouts.jsonl"))
    for link in (folder / "ckpt").iterdir():
        if link.is_symlink():
            link.unlink()
    shutil.rmtree(folder / "ckpt" / "step-000002")
    rl.run(load_config(shop.arguments(RL, *arguments)))
    got = load_file(folder / "ckpt" / "step-000002" / "model.safetensors")
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("sdar", [], "the model has no routers"),
        ("llada2", ["training.method=coupled"], "training.method=coupled trains states that were never sampled"),
        ("llada2", ["rollout.cache=none"], "only the exact cache of block families"),
    ],
)
def test_experts_that_cannot_be_replayed_are_an_error_before_a_model_is_loaded(shop_of, family, changes, said):
    with pytest.raises(ValueError, match=f"training.replay_routing=true: {said}"):
        rl.run(load_config(shop_of(family).arguments(RL, "training.replay_routing=true", *changes)))


@pytest.mark.slow
def test_blocks_of_full_attention_are_only_a_schedule(shop_of, capsys):
    """No pair of block sizes is refused, and none is warned about."""
    shop = shop_of("dream")
    arguments = [
        "training.block_size=16",
        "rollout.block_size=4",
        "evaluation.eval_dataset=''",
        "experiment.total_step=1",
    ]
    rl.run(load_config(shop.arguments(RL, *arguments)))
    said = capsys.readouterr()
    assert "checkpoint's" not in said.out + said.err
    (row,) = read_jsonl(shop.runs / "rl" / "metrics.jsonl")
    assert row["mismatch_kl"] < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), cases(RL_METHODS, "TraceRL", thorough=("sdar",)))
def test_two_steps_of_rl_with_a_value_model(shop_of, family, method):
    """The head, zero at first, moves in the first step, its body from the second."""
    shop = shop_of(family)
    arguments = [f"training.method={method}", f"model.value_base_model={shop.model}", "evaluation.eval_dataset=''"]
    arguments += ["training.batch_size_lm=100000", "optimizer.params.value_learning_rate=1e-2"]
    rl.run(load_config(shop.arguments(RL, *arguments)))
    folder = shop.runs / "rl" / "ckpt"
    first, second = (load_file(folder / f"step-00000{n}" / "value" / "model.safetensors") for n in (1, 2))
    assert first["value_head.weight"].abs().sum() > 0
    base = still(*(folder / f"step-00000{n}" / "value" for n in (1, 2)))
    assert base == {name for name in base if "lm_head" in name or name == "model.transformer.ff_out.weight"}
    load_value_model(folder / "optimized_value")
