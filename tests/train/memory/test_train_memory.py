"""The planner against tensors that are really there: weights, gradients, moments and slots by walking the objects,
activations by a meter of storages while real steps and updates run."""

import json
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import REAL, random_prompts, tiny_checkpoint
from judge_server import judge_checkpoint
from memory_meter import Meter, held
from torch.utils._pytree import tree_leaves
from trainees import make_config, policy_of, updater_of

from configs import load_config
from models.spec import CheckpointSpec, hf_config
from sample import Rollout, Sampler
from sample.slots import Room, SlotKV, StepState
from train.distributed.accelerator import make_accelerator
from train.distributed.kind import world_size
from train.memory import plan
from train.memory.inputs import Inputs
from train.memory.machine import Machine, host_memory_bytes
from train.memory.report import check_memory, memory_lines
from train.setup.blocks import Blocks
from train.setup.decodings import inference_model, sampling_entries
from train.setup.local_judge import LocalJudge
from train.setup.models import RunModels, frozen_reference, make_model, make_trained_model, make_value_model, spec_of

P, R, BLOCK, RESPONSES = 40, 16, 4, 5
SHARE = 0.15
FIXED = {"experiment": {"gpu_memory_gib": 0.05, "deterministic": True}}
SIZES = {
    "sdar": {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 256},
    "sdar_moe": {"hidden_size": 64, "moe_intermediate_size": 80, "vocab_size": 256},
    "llada2": {"hidden_size": 64, "intermediate_size": 160, "moe_intermediate_size": 80, "vocab_size": 256},
    "dream": {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 256},
    "llada": {"d_model": 64, "mlp_hidden_size": 160, "vocab_size": 256, "embedding_size": 256},
}


def settings(folder, **sections):
    """One token a step, answers that never stop, so that every response is the longest."""
    given = {
        "model": {"pretrained_model": str(folder), "device": "cpu"} | sections.pop("model", {}),
        "rollout": {
            "num_task_per_step": RESPONSES,
            "num_response_per_task": 1,
            "max_new_tokens": R,
            "block_size": BLOCK,
            "strategy": "low_confidence_static",
            "early_stop": False,
        }
        | sections.pop("rollout", {}),
        "training": {"max_prompt_len": P, "max_tokens_per_microbatch": 240} | sections.pop("training", {}),
    }
    return make_config(**given, **sections)


def models_of(config, kind="rl"):
    return RunModels.of(config, spec_of(config), kind)


def inputs_of(config, kind="rl", **named):
    return Inputs.of(config, models_of(config, kind), **named)


def checkpoint(folder, family="sdar", **sizes):
    return tiny_checkpoint(folder / family, family, **SIZES[family] | sizes)


def machine(half=False, gib=1.0):
    return Machine("cpu", gib * 2**30, half)


@pytest.fixture(autouse=True)
def as_it_was():
    """A process has one precision: what comes after chooses its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Trainee:
    """What a run holds, with rollouts of the longest kind."""

    def __init__(self, config, half):
        precision = "bf16" if half else "no"
        self.config, self.model = config, make_trained_model(config, precision)
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = make_accelerator(precision, torch.device("cpu"))
        blocks = Blocks.of(config, self.model.spec)
        (sampling,) = sampling_entries(config.rollout, self.model, blocks.sampled, seed=0, deterministic=False).values()
        self.reference = frozen_reference(config, self.model, precision)
        self.policy = policy_of(config, self.model, accelerator, sampling, self.reference)
        self.updater = self.policy.updater
        sampled_in_half = {"auto": half}.get(config.rollout.dtype, config.rollout.dtype == "bf16")
        self.sampled = inference_model(self.model, torch.bfloat16 if sampled_in_half else torch.float32)
        self.sampler = Sampler(self.sampled, replace(sampling, stop_ids=()))
        self.rollouts = []

    def sample(self):
        """The most bytes that sampling holds: slots and steps."""
        with Meter() as meter:
            self.rollouts = self.sampler.generate(random_prompts([P] * RESPONSES, vocab_size=256))
        return meter.peak

    def update(self, updater=None):
        """(the most bytes that an update's passes hold, gradients among them; bytes of the gradients)."""
        updater, gradients = updater or self.updater, []
        batch = self.policy.batch(self.rollouts, [1.0] * len(self.rollouts))
        several = 1 + 2 * self.config.training.max_tokens_per_microbatch // batch.samples[0].num_tokens
        step, meter = updater.engine.optimizer.step, Meter()

        def measured_step(*arguments):
            gradients.append((held([p.grad for p in updater.model.parameters()]), meter.peak))
            step(*arguments)

        updater.engine.optimizer.step = measured_step
        with meter:
            result = updater.update(batch.samples, range(several), lambda x_N, micro: (x_N.sum(), {}))
        updater.engine.optimizer.step = step
        assert result.taken and result.micro_batches > 1
        (sizes,) = gradients
        return sizes[1], sizes[0]


def state_of(updater):
    engine = updater.engine
    masters = list(engine.masters.masters.values()) if engine.masters else []
    return held(masters, [list(state.values()) for state in engine.optimizer.state.values()])


def slots_of(sampler):
    kv, state = sampler._held.kv, sampler._held.state
    return held(vars(state), *((kv.keys, kv.values) if kv is not None else ()))


def near(estimate, measured, share=SHARE):
    assert abs(estimate / measured - 1) <= share, f"estimated {estimate:,.0f}, measured {measured:,}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "checkpointing", "half"),
    [
        ("sdar", False, False),
        ("sdar", True, False),
        ("sdar", False, True),
        pytest.param("sdar", True, True, marks=pytest.mark.slow),
        ("dream", False, False),
        ("dream", True, False),
        pytest.param("dream", False, True, marks=pytest.mark.slow),
        pytest.param("dream", True, True, marks=pytest.mark.slow),
    ],
)
def test_every_part_is_what_tensors_take(tmp_path, family, checkpointing, half):
    folder = checkpoint(tmp_path, family)
    config = settings(folder, training={"gradient_checkpointing_enable": checkpointing})
    compare(config, folder, half)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "sections"),
    [
        ("sdar", {"lora": {"rank": 4}}),
        ("dream", {"lora": {"rank": 4, "target_modules": ["q_proj", "v_proj"]}}),
        slow("llada", {"rollout": {"cache": "prefix"}, "training": {"kl_to": "reference"}}),
        slow("sdar", {"rollout": {"cache": "none"}}),
        slow("sdar_moe", {}),
        slow("llada2", {}),
        slow("sdar", {"rollout": {"dtype": "bf16", "temperature": 0.7, "top_p": 0.9}}),
    ],
    ids=["lora", "lora_of_two_layers", "prefix_and_reference", "no_cache", "experts", "llada2", "bf16_sampler"],
)
def test_the_other_ways_to_train_and_sample(tmp_path, family, sections):
    folder = checkpoint(tmp_path, family)
    compare(settings(folder, **sections), folder, half=False)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sdar", slow("sdar_moe"), slow("llada2")])
def test_adapters_over_a_bf16_base(tmp_path, family):
    """A frozen base is bf16 alone, and the sampler's too."""
    folder = checkpoint(tmp_path, family)
    targets = ["q_proj", "o_proj"] if family == "sdar_moe" else []
    config = settings(folder, lora={"rank": 4, "target_modules": targets}, training={"kl_to": "reference"})
    compare(config, folder, half=True)


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "layouts").is_dir(), reason="the layouts of real checkpoints are absent")
def test_a_4b_model_with_adapters_fits_a_card_of_24_gb(tmp_path):
    """SDAR-4B under configs/rl_sdar.yaml: weights of 8.2 GiB are all that full training would hold six times."""
    arguments = [f"model.pretrained_model={REAL / 'layouts' / 'SDAR-4B-Chat'}", "model.random_init=true"]
    arguments += ["experiment.gpu_memory_gib=24", "experiment.processes=1", "rollout.max_slots=24"]
    arguments += ["evaluation.max_slots=24", "lora.rank=16", "config=configs/rl_sdar.yaml"]
    inputs = inputs_of(load_config(arguments))
    assert plan.too_large(inputs) == [] and "sampler weights" not in plan.always(inputs)
    assert plan.always(inputs)["weights"] == pytest.approx(8.3 * 2**30, rel=0.01)
    whole = inputs_of(load_config([*arguments, "lora.rank=0"]))
    assert sum(plan.always(whole).values()) > 50 * 2**30


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "layouts").is_dir(), reason="the layouts of real checkpoints are absent")
def test_llada2_mini_fits_its_machine_and_flash_does_not(tmp_path):
    """configs/llada2_eval.yaml on one GPU of 80 GB. Flash's sizes: 102.9e9 weights, 192 GiB in bf16."""
    raw = json.loads((REAL / "layouts" / "LLaDA2.1-mini" / "config.json").read_text())
    flash = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    flash |= {"intermediate_size": 9216, "moe_intermediate_size": 1024}
    for name, changes, parameters in (("mini", {}, 16.26e9), ("flash", flash, 102.89e9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(raw | changes))
        given = [f"model.pretrained_model={tmp_path / name}", "model.random_init=true", "experiment.processes=1"]
        config = load_config(["config=configs/llada2_eval.yaml", "experiment.gpu_memory_gib=79", *given])
        inputs = inputs_of(config, "eval")
        assert inputs.net.parameters == pytest.approx(parameters, rel=1e-3)
        assert (inputs.net.experts, inputs.net.dense_layers, inputs.net.shared_inner) == (
            *(256, 1),
            512 if name == "mini" else 1024,
        )
        assert bool(plan.too_large(inputs)) == (name == "flash")


def test_a_folder_of_adapters_takes_what_fresh_adapters_take(tmp_path):
    folder, adapters = checkpoint(tmp_path), tmp_path / "adapters"
    fresh = settings(folder, lora={"rank": 4, "target_modules": ["q_proj", "v_proj"]}, training={"kl_to": "reference"})
    make_model(fresh).save(adapters)
    further = settings(adapters, training={"kl_to": "reference"})
    want, got = (inputs_of(config, machine=machine()) for config in (fresh, further))
    assert plan.phases(got) == plan.phases(want) and plan.host(got) == plan.host(want)
    held = plan.always(want) | {"frozen reference": 4 * got.adapter_parameters}  # the adapters that it began with
    assert plan.always(got) == held and held["optimizer"] < held["weights"] / 10


def test_adapters_beside_other_settings_of_adapters_are_an_error(tmp_path):
    folder, adapters = checkpoint(tmp_path), tmp_path / "adapters"
    section = {"rank": 4, "target_modules": ["q_proj", "v_proj"]}
    make_model(settings(folder, lora=section)).save(adapters)
    for same in (section, {"rank": 4}):
        assert make_model(settings(adapters, lora=same)).adapters.r == 4
    for other in ({"rank": 8}, section | {"dropout": 0.5}, {"rank": 4, "target_modules": ["q_proj"]}):
        with pytest.raises(ValueError, match=r"lora\.\*: .*adapters holds adapters already"):
            inputs_of(settings(adapters, lora=other))


def test_an_evaluation_makes_no_adapters(tmp_path):
    config = settings(checkpoint(tmp_path), lora={"rank": 4})
    assert make_model(config, new_adapters=False).adapters is None
    assert inputs_of(config, "eval").adapter_parameters == 0


def compare(config, folder, half, share=SHARE):
    inputs, run = inputs_of(config, machine=machine(half)), Trainee(config, half)
    always, phases = plan.always(inputs), plan.phases(inputs)
    sampling = run.sample()
    peak, gradients = run.update()
    weights = held(list(run.model.parameters()))
    copy = held(list(run.sampled.parameters())) if run.sampled is not run.model else 0
    slots, moments = slots_of(run.sampler), state_of(run.updater)
    reference = held(list(run.reference.parameters())) if run.reference is not None else 0
    near(always["weights"], weights, 0.02)
    near(always["optimizer"], moments, 0.02)
    near(phases["update"]["gradients"], gradients, 0.02)
    near(phases["sampling"]["slots"], slots, 0.05)
    assert bool(copy) == ("sampler weights" in always) and bool(reference) == ("frozen reference" in always)
    if copy:
        near(always["sampler weights"], copy, 0.02)
    if reference:
        near(always["frozen reference"], reference, 0.02)
    near(sum(phases["sampling"].values()), sampling)
    near(phases["update"]["micro-batch"], peak - gradients, share)
    near(plan.total(inputs, phases["update"]), weights + moments + copy + reference + peak, share)
    near(plan.total(inputs, phases["sampling"]), weights + moments + copy + reference + sampling)


@pytest.mark.parametrize("family", ["sdar", "llada"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sizes_of_slots_are_those_of_all_their_tensors(tmp_path, family, dtype):
    """A tensor that is added to either record and not to its size fails here."""
    spec, cpu = spec_of(settings(checkpoint(tmp_path, family))), torch.device("cpu")
    config = hf_config(spec.family, spec.raw)
    kv, state = SlotKV(config, 3, 21, dtype, cpu), StepState.empty(3, 21, 1, cpu)
    tensors = [x for x in tree_leaves(list(vars(kv).values())) if isinstance(x, torch.Tensor)]
    assert held(tensors) == SlotKV.bytes(config, 3, 21, dtype) > 0
    assert held(list(vars(state).values())) == StepState.bytes(3, 21)
    assert {item.name for item in fields(state)} == set(vars(state))


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, slow(True)])
def test_the_value_model(tmp_path, half):
    folder = checkpoint(tmp_path)
    config = settings(folder, model={"value_base_model": str(folder)})
    inputs, run = inputs_of(config, machine=machine(half)), Trainee(config, half)
    run.sample()
    value = make_value_model(config, spec_of(config))
    updater = updater_of(config, value, run.updater.accelerator)
    peak, gradients = run.update(updater)
    phase, always = plan.phases(inputs)["value update"], plan.always(inputs)
    near(always["value model"], held(list(value.parameters())), 0.02)
    near(always["value optimizer"], state_of(updater), 0.02)
    near(phase["gradients"], gradients, 0.02)
    near(phase["micro-batch"], peak - gradients)


@pytest.mark.slow
def test_the_local_judge(tmp_path):
    folder, judge = checkpoint(tmp_path), judge_checkpoint(tmp_path / "judge")
    local = {"local": str(judge), "max_tokens": 6, "max_model_len": 64}
    config = settings(folder, judge=local)
    inputs = inputs_of(config, machine=machine())
    loaded = LocalJudge(str(judge), config.judge, torch.device("cpu"))
    loaded._load()
    near(plan.always(inputs)["judge"], held(list(loaded.model.parameters())), 0.02)
    assert plan.phases(inputs)["judging"]["judge at work"] > 0


def test_zero_shares_out_what_it_should(tmp_path):
    folder = checkpoint(tmp_path)
    alone, two, three = (
        inputs_of(settings(folder), stage=stage, processes=4, machine=machine()) for stage in (0, 2, 3)
    )
    whole = plan.always(alone)
    for stage, inputs in ((2, two), (3, three)):
        always, update = plan.always(inputs), plan.phases(inputs)["update"]
        assert always["optimizer"] == pytest.approx(whole["optimizer"] * 12 / 8 / 4)
        assert update["gradients"] == plan.phases(alone)["update"]["gradients"] / 4
        assert always["weights"] == whole["weights"] / (4 if stage == 3 else 1)
    assert "sampler weights" not in plan.always(two)
    assert plan.always(three)["sampler weights"] == whole["weights"]


def test_the_largest_sizes_fit_and_larger_ones_do_not(tmp_path):
    folder = checkpoint(tmp_path)
    config = settings(folder, rollout={"num_task_per_step": 4096, "max_slots": 64})
    fitting = inputs_of(config, machine=machine(gib=0.05))
    assert not plan.too_large(fitting)
    slots, tokens = plan.largest_slots(fitting), plan.largest_tokens(fitting)
    assert slots >= 64 and tokens >= 240
    for largest, named in ((slots, "slots"), (tokens, "tokens")):
        for size, fits in ((largest, True), (largest + 1, False)):
            phases = plan.phases(fitting, **{named: size}).values()
            assert all(plan.total(fitting, parts) <= plan.usable(fitting) for parts in phases) == fits


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (FIXED | {"rollout": {"num_task_per_step": 4096, "max_slots": 4000}}, "set rollout.max_slots="),
        (FIXED | {"training": {"max_tokens_per_microbatch": 40_000}}, "set training.max_tokens_per_microbatch="),
        ({"training": {"max_prompt_len": 9000}}, "gradient_checkpointing_enable=true"),
        ({"experiment": {"gpu_memory_gib": 0.001}}, "what stays on each device"),
    ],
)
def test_what_does_not_fit_is_reported_with_the_fix(tmp_path, caplog, capsys, sections, says):
    folder = checkpoint(tmp_path)
    sections = {"experiment": {"gpu_memory_gib": 0.05}} | sections
    config = settings(folder, **sections | {"training": {"mixed_precision": "no"} | sections.get("training", {})})
    check_memory(config, models_of(config))
    assert says in caplog.text and not capsys.readouterr().out
    assert "DOES NOT FIT" in "\n".join(memory_lines(inputs_of(config)))


def test_the_planner_reads_no_checkpoint_a_second_time(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path)
    config = settings(folder, model={"value_base_model": str(folder)})
    models = models_of(config)
    monkeypatch.setattr(CheckpointSpec, "read", lambda *_: pytest.fail("the checkpoint is read again"))
    assert plan.phases(Inputs.of(config, models, machine=machine())).keys() >= {"sampling", "update", "value update"}


def test_what_fits_is_not_warned_of(tmp_path, caplog):
    folder = checkpoint(tmp_path)
    for kind in ("rl", "sft", "eval"):
        config = settings(folder, training={"method": "trace" if kind == "sft" else "TraceRL"})
        check_memory(config, models_of(config, kind), response_tokens=R if kind == "sft" else None)
    assert not caplog.text


def test_the_machine_is_what_is_here_or_what_is_reported(tmp_path):
    config = settings(tmp_path)
    assert Machine.of(config).kind == "cpu" and 0 < Machine.of(config).memory_bytes <= host_memory_bytes() * 1.1
    there = {"gpu_memory_gib": 80.0, "processes": 8, "num_node": 2}
    config = settings(tmp_path, experiment=there, training={"mixed_precision": "bf16"})
    assert Machine.of(config) == Machine("cuda", 80 * 2**30, True) and world_size(config) == 16


@pytest.mark.slow
def test_rollouts_and_rows_on_the_host(tmp_path):
    """Ids as a tokenizer with a large vocabulary has them: beyond the small integers that Python keeps."""
    folder = checkpoint(tmp_path)
    config = settings(folder, rollout={"num_task_per_step": 50})
    host = plan.host(inputs_of(config, machine=machine()))
    tracemalloc.start()
    ids = torch.randint(1000, 10**5, (50, P + R))
    rollouts = [
        Rollout(
            (i,), row[:P].tolist(), row[P:].tolist(), (row[P:] + 7).tolist(), torch.rand(R).tolist(), R, "stop", R, 0
        )
        for i, row in enumerate(ids)
    ]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rollouts) == 50
    near(host["rollouts"], size, 0.3)
    run = Trainee(config, half=False)
    run.sample()
    rows = run.policy.batch(run.rollouts, [1.0] * len(run.rollouts)).samples
    near(host["samples"] / 50, plan.samples_bytes(rows) / len(run.rollouts))
    assert all(isinstance(x, np.ndarray) for x in (rows[0].ids, rows[0].index))


@pytest.mark.slow
def test_experts_that_are_replayed_are_planned_on_the_host(tmp_path):
    folder = checkpoint(tmp_path, "llada2")
    config = settings(folder, training={"replay_routing": True})
    inputs, run = inputs_of(config, machine=machine()), Trainee(config, half=False)
    sampler = Sampler(run.sampled, replace(run.sampler.config, record_routing=True))
    rollouts = sampler.generate(random_prompts([P] * RESPONSES, vocab_size=256))
    rows = run.policy.batch(rollouts, [1.0] * len(rollouts)).samples
    kept = sum(each.routing.clean.nbytes + each.routing.noisy.nbytes for each in rollouts)
    near(plan.host(inputs)["replayed experts"], kept + sum(row.experts.nbytes for row in rows))
    assert "replayed experts" in "\n".join(memory_lines(inputs))
    assert "replayed experts" not in plan.host(inputs_of(settings(folder), machine=machine()))


def test_an_objective_that_needs_whole_responses_is_planned_with_them(tmp_path):
    """Under full attention each denoising step of a response is a sequence: all of them in one forward."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from train.algorithm.objectives import objective\n\n\n"
        "@objective(whole_responses=True)\n"
        "def mine(batch, params):\n    return -(batch.weight * batch.logp).sum(), {}\n"
    )
    folder = checkpoint(tmp_path, "dream")
    plain, whole = (
        inputs_of(settings(folder, training={"objective": objective}), machine=machine())
        for objective in ("clip", f"{path}:mine")
    )
    assert plain.unsplit_tokens < 240 and whole.unsplit_tokens == R * (P + R)
    for inputs, tokens in ((plain, 240), (whole, R * (P + R))):
        assert plan.phases(inputs)["update"] == plan.phases(inputs, tokens=tokens)["update"]


def test_edits_and_remasking_are_planned_with_the_steps_that_they_may_add(tmp_path):
    folder, room = checkpoint(tmp_path, "sdar"), {"max_post_steps": 3, "remask_budget": 2}
    tokens, blocks = {}, R // BLOCK
    for name, chosen in (("none", {}), ("edits", {"edit_threshold": 0.5}), ("remasking", {"remask_threshold": 0.5})):
        inputs = inputs_of(settings(folder, rollout=chosen | room), machine=machine())
        tokens[name] = inputs.unsplit_tokens
    assert tokens["edits"] == tokens["none"] + 3 * blocks * BLOCK
    assert tokens["remasking"] == tokens["none"] + 5 * blocks * BLOCK


def test_edits_that_move_tokens_are_planned_with_the_most_steps_of_a_block(tmp_path):
    found = {}
    for name, ids in (("edits", {}), ("moves", {"delete_token_id": 40, "split_token_id": 41})):
        folder = checkpoint(tmp_path / name, "llada2", expert_capacity=3, **ids)
        given = settings(folder, rollout={"edit_threshold": 0.5, "max_post_steps": 3})
        inputs = inputs_of(given, machine=machine())
        found[name] = inputs.unsplit_tokens, plan.sampling(inputs, given.rollout, 2)["slots"]
    assert found["moves"][0] == found["edits"][0] + BLOCK * (R // BLOCK) * BLOCK
    steps, blocks = 2 * BLOCK + 3, -(-(R + BLOCK - 1) // BLOCK)
    room = Room(steps * BLOCK * blocks, steps, BLOCK), Room((BLOCK * (BLOCK + 1) // 2 + 3 * BLOCK) * blocks)
    held = [StepState.bytes(2, P + R + BLOCK - 1, each) for each in room]
    assert found["moves"][1] - found["edits"][1] == held[0] - held[1] > 0
