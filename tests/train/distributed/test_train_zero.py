"""DeepSpeed's ZeRO and torch's FSDP2 train as one process does: updates, runs, checkpoints that any engine and number
of ranks goes on with. Real processes with gloo."""

import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest
import rank_work
import torch
from accelerate.utils import DeepSpeedPlugin
from end_to_end import RL, SFT, Workshop, read_jsonl, text_checkpoint
from helpers import tiny_checkpoint
from rank_jobs import run_ranks
from test_train_ranks import SMOOTH, Stop, assert_same, call_rl_updates, one_process, run_until
from trainees import make_config

from configs import load_config, merge
from configs.engine import FOLDER, engine_file
from models import load_model, lora
from runtime.child import STORE_VARIABLE
from train import checks, prepare, sft
from train.command import placement
from train.distributed import kind
from train.distributed.kind import check_engine, offloads, zero_stage

ZERO_2, ZERO_3 = (f"experiment.deepspeed_file=1_node_2_cpus_deepspeed_zero{stage}" for stage in (2, 3))
EIGHT = {"processes": 8}
FSDP_2 = "experiment.deepspeed_file=1_node_2_cpus_fsdp2"
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="deepspeed is not installed (requirements-extras.txt)",
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return text_checkpoint(tmp_path_factory.mktemp("model"))


def with_file(name, **sections):
    return make_config(**sections | {"experiment": {"deepspeed_file": name} | sections.get("experiment", {})})


def test_a_file_says_nodes_processes_and_engine():
    file = engine_file("4_node_8_gpus_deepspeed_zero3.yaml")
    assert (file.nodes, file.processes, file.processes_per_node, file.kind, file.cpu) == (4, 32, 8, "zero3", False)
    assert engine_file("1_node_2_cpus_ddp").kind == "ddp" and engine_file(None) is None
    file = engine_file("1_node_2_cpus_fsdp2")
    assert (file.kind, file.cpu) == ("fsdp2", True)
    with pytest.raises(ValueError, match="choose from .*1_node_8_gpus_ddp.*Did you mean 1_node_8_gpus_deepspeed_zero3"):
        engine_file("1_node_8_gpu_deepspeed_zero3")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("zero_stage: 3", "zero_stage: 1", "zero_stage 1"),
        ("offload_param_device: none", "offload_param_device: cpu", "offload_param_device=cpu"),
        ("offload_optimizer_device: none", "offload_optimizer_device: nvme", "offload_optimizer_device=nvme"),
        ("type: DEEPSPEED", "type: FSDP\nfsdp_config: {fsdp_version: 1}", "FSDP with fsdp_version 1"),
    ],
)
def test_a_file_that_asks_for_what_is_not_here_is_refused(monkeypatch, tmp_path, before, after, said):
    monkeypatch.setattr("configs.engine.FOLDER", tmp_path)
    text = (FOLDER / "1_node_8_gpus_deepspeed_zero3.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text.replace(before, after))
    with pytest.raises(ValueError, match=said):
        engine_file("own")


def test_the_stage_is_the_configs_or_the_launchers(monkeypatch):
    assert zero_stage(with_file(None)) == zero_stage(with_file("1_node_8_gpus_ddp")) == 0
    assert zero_stage(with_file("1_node_8_gpus_deepspeed_zero3")) == 3
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    assert zero_stage(with_file(None)) == zero_stage(with_file("1_node_8_gpus_deepspeed_zero2")) == 2
    for name, engine_name in (("deepspeed_zero3", "ZeRO-3"), ("fsdp2", "FSDP2")):
        with pytest.raises(ValueError, match=f"{engine_name}, but accelerate launch was given ZeRO-2"):
            zero_stage(with_file(f"1_node_8_gpus_{name}"))


def test_the_optimizer_lies_in_host_memory_where_a_file_or_the_launcher_says_so(monkeypatch):
    for engine in ("deepspeed_zero3", "fsdp2"):
        assert offloads(with_file(f"1_node_8_gpus_{engine}_offload", model={"device": "cpu"}, experiment=EIGHT))
        assert not offloads(with_file(f"1_node_8_gpus_{engine}", model={"device": "cpu"}, experiment=EIGHT))
    assert not offloads(with_file("1_node_8_gpus_fsdp2_offload", model={"device": "cpu"}, experiment={"processes": 1}))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    assert offloads(with_file(None, experiment=EIGHT))
    assert DeepSpeedPlugin(hf_ds_config=None).offload_optimizer_device == "cpu"
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "cpu")
    with pytest.raises(ValueError, match="accelerate's config: offload_param_device=cpu"):
        zero_stage(with_file(None))


@pytest.mark.slow
def test_what_an_engine_cannot_do_is_reported_before_a_model_is_loaded(monkeypatch, tmp_path, model_folder):
    shop = Workshop(tmp_path, model_folder)
    monkeypatch.setattr(kind, "find_spec", lambda name: None)
    for check, text in ((checks.check, RL), (sft.check, SFT)):
        with pytest.raises(ValueError, match="pip install -c requirements-extras.txt deepspeed"):
            check(load_config(shop.arguments(text, ZERO_3, "dry_run=true")))
        check(load_config(shop.arguments(text, FSDP_2, "dry_run=true")))
    check_engine(with_file("1_node_8_gpus_ddp", lora={"rank": 4}), model_folder)


@pytest.mark.parametrize("word", [None, ZERO_2])
def test_the_first_model_is_made_by_the_engine_of_the_run(monkeypatch, tmp_path, model_folder, word):
    """A process has one."""
    shop, made, prepared = Workshop(tmp_path, model_folder), tmp_path / "made", []
    shop.arguments(SFT)
    text = (shop.folder / "sft.yaml").read_text()
    named = "experiment: {deepspeed_file: 1_node_2_cpus_deepspeed_zero3, "
    (shop.folder / "first.yaml").write_text(text.replace("experiment: {", named))
    arguments = [f"model.prepare_with={shop.folder}/first.yaml", f"model.pretrained_model={made}"]
    config = load_config(shop.arguments(RL, *arguments, *([word] if word else [])))
    monkeypatch.setattr(sft, "run", lambda config: (prepared.append(config), shutil.copytree(model_folder, made)))
    prepare.prepare_model(config)
    (first,) = prepared
    assert first.experiment.project == "sft"
    assert first.experiment.deepspeed_file == config.experiment.deepspeed_file == (word and word.split("=")[1])


@pytest.mark.parametrize(
    ("gpus", "name", "processes", "said"),
    [
        (8, "1_node_8_gpus_deepspeed_zero3", 0, None),
        (8, "1_node_8_gpus_deepspeed_zero2", 4, "experiment.processes=4 disagree"),
        (8, "2_node_8_gpus_deepspeed_zero2", 0, "this job has 1: take 1_node_"),
    ],
)
def test_a_file_that_does_not_fit_the_machine_is_refused(monkeypatch, gpus, name, processes, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = with_file(name, experiment={"deepspeed_file": name, "processes": processes})
    if said is None:
        assert placement(config, nodes=False)[0] == 8
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "4")
        said = "is for 8 processes; 4 were started"
    with pytest.raises(ValueError, match=said):
        placement(config, nodes=False)


@pytest.mark.parametrize(("gpus", "started"), [(4, 4), (1, 1), (0, 1)])
def test_a_file_for_more_gpus_than_there_are_takes_those_and_says_so(monkeypatch, caplog, gpus, started):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = with_file("1_node_8_gpus_deepspeed_zero3")
    assert placement(config, nodes=False)[0] == started
    assert f"is for 8 GPUs a node and this machine has {gpus}" in caplog.text
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(started))
    monkeypatch.setenv(STORE_VARIABLE, "tcp:127.0.0.1:1")
    placement(config, nodes=False)


def test_a_dry_run_plans_for_machines_that_are_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    name = "2_node_8_gpus_deepspeed_zero3"
    config = with_file(name, experiment={"deepspeed_file": name, "gpu_memory_gib": 80.0})
    processes, node = placement(replace(config, dry_run=True), nodes=False)
    assert (processes, node.count) == (8, 2)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("rl", "rl.py runs on one machine. Type multinode_rl.py with"),
        ("eval", "eval.py runs on one machine. Type multinode_eval.py with"),
        ("sft", "train/sft.py runs on one machine. Start it with accelerate launch on each machine"),
    ],
)
def test_a_config_of_several_nodes_says_how_its_command_runs_there(monkeypatch, command, says):
    config = merge({"experiment": {"num_node": 4}})
    with pytest.raises(ValueError, match=f"experiment.num_node=4: {says}.*or set experiment.num_node=1"):
        placement(config, nodes=False, command=command)
    monkeypatch.setenv("RANK", "0")  # by another launcher, which knows the nodes
    assert placement(config, nodes=False, command=command)[1].count == 1


CASES = {
    "value": {"with_value": True, "max_grad_norm": 1.0},
    "poison": {"poison": 3},
    "experts": {"family": "sdar_moe"},
    "llada2": {"family": "llada2"},
    "full": {"family": "dream", "logp_old": "recompute", "num_train_epochs": 2},
    "one response": {"lengths": (5,), "n": 1},
    "tied": {"with_value": True, "model_config": {"tie_word_embeddings": True}, "logp_old": "recompute"},
}


SHARING = [*(pytest.param(kind, marks=needs_deepspeed) for kind in ("zero2", "zero3")), "fsdp2"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", SHARING)
@pytest.mark.parametrize(
    ("case", "world"),
    [
        ("value", 2),
        *(pytest.param(case, world, marks=pytest.mark.long) for case, world in (("poison", 2), ("experts", 2))),
        pytest.param("llada2", 2, marks=pytest.mark.long),
        *(pytest.param(case, world, marks=pytest.mark.long) for case, world in (("full", 2), ("one response", 3))),
        pytest.param("tied", 2, marks=pytest.mark.long),
    ],
)
def test_updates_are_those_of_one_process(tmp_path, engine, case, world):
    """Ranks with fewer micro-batches, or none, take part; what is not finite is skipped by all."""
    want = one_process(tmp_path, call_rl_updates, CASES[case])
    for got in run_ranks(tmp_path / "many", world, call_rl_updates, CASES[case] | {"engine": engine}):
        assert_same(got, want)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdar", "llada2"])
@pytest.mark.parametrize("engine", SHARING)
def test_bf16_is_that_of_ranks_that_hold_all(tmp_path, engine, family):
    """Metrics and masters, on the same two ranks, whose micro-batches are the same; with a value model. An engine that
    rounded the bias of LLaDA2's router would send tokens to other experts."""
    exact, want, got = (
        run_ranks(tmp_path / str(i), 2, call_rl_updates, named | {"with_value": True, "family": family})[0]
        for i, named in enumerate(({}, {"precision": "bf16"}, {"precision": "bf16", "engine": engine}))
    )
    assert_same(got, want)
    assert abs(want[0][0]["grad_norm"] - exact[0][0]["grad_norm"]) > 1e-4


@pytest.mark.slow
def test_bf16_on_two_ranks_is_that_of_one_but_for_rounding(tmp_path):
    """Ranks pack other micro-batches. The masters of all ranks move alike (`require_equal_weights`)."""
    want = one_process(tmp_path, call_rl_updates, {"precision": "bf16"})
    got = run_ranks(tmp_path / "many", 2, call_rl_updates, {"precision": "bf16"})[0]
    for name in ("grad_norm", "loss", "trained_tokens"):
        assert got[0][0][name] == pytest.approx(want[0][0][name], rel=0.02), name
    for name, master in want[1].items():
        assert float((got[1][name] - master).abs().max()) < 2e-3, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "share"),
    [
        pytest.param("zero2", 1.0, marks=[needs_deepspeed, pytest.mark.long]),
        pytest.param("zero3", 0.05, marks=needs_deepspeed),
        pytest.param("fsdp2", 0.51, marks=pytest.mark.long),
    ],
)
def test_ranks_hold_shares(tmp_path, engine, share):
    for weights, moments, total in run_ranks(tmp_path, 2, rank_work.held, engine):
        assert weights == total if share == 1.0 else weights < total * share
        assert moments < total * 0.51


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("what", ["layers", "logits"])
def test_what_spares_memory_changes_nothing_under_fsdp2(tmp_path, what):
    want = one_process(tmp_path, call_rl_updates, {})
    for got in run_ranks(tmp_path / "many", 2, rank_work.sparing_updates, what, "fsdp2"):
        assert_same(got, want)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "stage"),
    [
        ("logits", 3),
        *(
            pytest.param(what, stage, marks=pytest.mark.long)
            for what, stage in (("logits", 2), ("layers", 2), ("layers", 3), ("buckets", 2), ("buckets", 3))
        ),
    ],
)
def test_what_spares_memory_changes_nothing(tmp_path, what, stage):
    """Also where the ranks' micro-batches have other numbers of chunks of logits."""
    want = one_process(tmp_path, call_rl_updates, {})
    for got in run_ranks(tmp_path / "many", 2, rank_work.sparing_updates, what, f"zero{stage}"):
        assert_same(got, want)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "engines",
    [
        pytest.param((ZERO_3, ZERO_2, ZERO_3), marks=needs_deepspeed),
        (FSDP_2, FSDP_2, FSDP_2),
        pytest.param((ZERO_3, FSDP_2, ZERO_2), marks=[needs_deepspeed, pytest.mark.long]),
    ],
)
def test_a_run_goes_from_one_engine_to_another(tmp_path, model_folder, engines):
    """Checkpoints of a sharing engine, of one process and of a sharing engine, each gone on with by another, in the
    end on three ranks that share nothing evenly: as one process throughout."""
    shop = Workshop(tmp_path, model_folder)
    arguments = (*SMOOTH, "experiment.total_step=4", "experiment.eval_every=4", "training.rows_per_update=8")
    arguments = (*arguments, "optimizer.params.weight_decay=0.1", "lr_scheduler.params.warmup_steps=2")
    one = shop.arguments(RL, *arguments, "experiment.project=straight")
    (failure,) = run_ranks(tmp_path / "job", 1, rank_work.whole_run, "rl", one)
    assert not isinstance(failure, BaseException), failure
    resumed = shop.arguments(RL, *arguments, "experiment.project=resumed")
    for last, world, *engine_arguments in ((1, 2, engines[0]), (2, 1), (3, 2, engines[1]), (4, 3, engines[2])):
        got = run_ranks(tmp_path / "job", world, run_until, [*resumed, *engine_arguments], last)
        assert all(isinstance(result, Stop if last < 4 else dict) for result in got), got
    straight, folder = shop.runs / "straight", shop.runs / "resumed"
    assert_same(read_jsonl(folder / "metrics.jsonl"), read_jsonl(straight / "metrics.jsonl"))
    for step in (1, 3, 4):
        path, other = (run / "ckpt" / f"step-{step:06d}" for run in (folder, straight))
        assert_same(dict(load_model(path).state_dict()), dict(load_model(other).state_dict()))
        mine, theirs = (torch.load(p / "trainer" / "state.pt")["updater"]["optimizer"] for p in (path, other))
        assert_same(mine, theirs)


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory):
    """A model of twelve layers, of which one is a small part."""
    return tiny_checkpoint(tmp_path_factory.mktemp("deep"), num_hidden_layers=12)


@pytest.mark.slow
def test_no_rank_reads_a_whole_model_into_memory(tmp_path, deep_folder):
    """Each takes its shard of one part after another: at no time more than half of the model and a few layers. Under
    ZeRO-3 DeepSpeed's own buffers (over 256 MiB) are larger than any model of a test."""
    want = dict(load_model(deep_folder).named_parameters())
    (*_, masters), _ = found = run_ranks(tmp_path, 2, rank_work.read_in_shards, deep_folder, "fsdp2")
    for peak, size, _ in found:
        assert peak < 0.75 * size
    assert_same(masters, {name: weight.detach() for name, weight in want.items()})


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [*(pytest.param(kind, marks=needs_deepspeed) for kind in ("deepspeed_zero2", "deepspeed_zero3")), "fsdp2"],
)
def test_adapters_learn_under_every_engine_as_in_one_process(tmp_path, engine):
    """With dropout, and a KL to the base that the adapters stand on."""
    folder = tiny_checkpoint(tmp_path / "base")
    (want,) = run_ranks(tmp_path / "one", 1, rank_work.adapter_updates, folder, "ddp")
    metrics, adapters, moments = run_ranks(tmp_path / "many", 2, rank_work.adapter_updates, folder, engine)[0]
    assert_same((metrics, adapters), want[:2])
    assert moments.keys() == want[2].keys() and adapters and want[0][1]["kl"] > 0
    for name, moment in want[2].items():
        assert float((moments[name] - moment).abs().max()) < 1e-5


def test_adapters_on_adapters_have_no_reference_where_no_rank_has_the_base(monkeypatch, tmp_path):
    monkeypatch.setattr(kind, "find_spec", lambda name: name)
    (tmp_path / lora.CONFIG).write_text("{}")
    sections = {"model": {"pretrained_model": str(tmp_path)}, "training": {"kl_to": "reference"}}
    for name in ("1_node_2_cpus_fsdp2", "1_node_2_cpus_deepspeed_zero3"):
        with pytest.raises(ValueError, match="training.kl_to=reference under .* holds adapters"):
            check_engine(with_file(name, **sections), tmp_path)
        with pytest.raises(ValueError, match="training.sft_objective=dpo under .* holds adapters"):
            check_engine(with_file(name, **sections | {"training": {"sft_objective": "dpo"}}), tmp_path)
        apart = sections | {"model": {"pretrained_model": str(tmp_path), "reference_model": "elsewhere"}}
        check_engine(with_file(name, **apart), tmp_path)
        check_engine(with_file(name), tmp_path)
    check_engine(with_file("1_node_2_cpus_deepspeed_zero2", **sections), tmp_path)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        *(pytest.param("zero3", precision, marks=needs_deepspeed) for precision in ("no", "bf16")),
        ("fsdp2", "no"),
        ("fsdp2", "bf16"),
    ],
)
def test_an_optimizer_in_host_memory_changes_nothing(tmp_path, engine, precision):
    given = {"engine": engine, "precision": precision}
    want, got = (
        run_ranks(tmp_path / str(i), 2, call, given, timeout=200)[0]
        for i, call in enumerate((call_rl_updates, call_offloaded_updates))
    )
    assert_same(got, want)


def call_offloaded_updates(arguments):
    return rank_work.offloaded_updates(**arguments)


@needs_deepspeed
@pytest.mark.slow
def test_other_weights_or_another_engine_on_a_rank_stop_the_job(tmp_path):
    for error in run_ranks(tmp_path, 2, rank_work.other_weights, False, "zero3"):
        assert isinstance(error, RuntimeError) and "weights of rank 1 differ" in str(error)
    for error in run_ranks(tmp_path, 2, rank_work.other_engines):
        assert isinstance(error, RuntimeError) and "the engine of rank 1 differs" in str(error)
