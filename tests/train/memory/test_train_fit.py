"""Sizes that the machine chooses: slots and tokens of a micro-batch are at most what is asked for and what fits."""

import pytest
from helpers import tiny_checkpoint
from trainees import make_config

from configs import load_config
from configs.spellings import SIZED_BY_MACHINE
from configs.tree import get
from sample import SamplingConfig
from train.learner.optimizer import UpdateSettings
from train.memory import plan
from train.memory.fit import Fit
from train.memory.inputs import Inputs
from train.setup.decodings import decodings
from train.setup.models import RunModels, spec_of

TOKENS = "max_tokens_per_microbatch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), "sdar", hidden_size=64, vocab_size=256)


def config_of(folder, gib=0.0, slots=None, tokens=None, **experiment):
    return make_config(
        experiment={"gpu_memory_gib": gib} | experiment,
        model={"pretrained_model": str(folder), "device": "cpu"},
        rollout={"num_task_per_step": 512, "num_response_per_task": 16, "max_new_tokens": 16, "max_slots": slots},
        evaluation={"eval_dataset": "MATH500", "max_new_tokens": 200, "max_slots": slots},
        training={"max_prompt_len": 40, TOKENS: tokens, "mixed_precision": "no"},
    )


def fit_of(config):
    return Fit.of(config, RunModels.of(config, spec_of(config)))


def inputs_of(config):
    return Inputs.of(config, RunModels.of(config, spec_of(config)))


def numbers(fit):
    return [fit.sizes[name].number for name in ("slots", "evaluation slots", "micro-batch")]


def test_a_cpu_has_the_sizes_that_it_always_had(folder):
    fit = fit_of(config_of(folder))
    assert numbers(fit) == [256, 256, 16384]
    assert numbers(fit_of(config_of(folder, slots=300, tokens=500))) == [300, 300, 500]


def test_on_a_gpu_all_that_is_left_open_fits_and_no_more_would(folder):
    config = config_of(folder, gib=0.05)
    fit = fit_of(config)
    inputs, slots, evaluated, tokens = inputs_of(fit.config), *numbers(fit)
    assert 1 < evaluated < slots < 1024 and tokens > 1000 and not plan.too_large(inputs)
    room = plan.usable(inputs) - sum(plan.always(inputs).values())
    assert sum(plan.sampling(inputs, fit.config.rollout, slots + 1).values()) > room
    assert sum(plan.sampling(inputs, fit.config.evaluation, evaluated + 1).values()) > room
    assert "what fits in 0.0 GiB" in fit.rows()["slots"]


def test_what_is_asked_for_is_a_maximum(folder):
    most = numbers(fit_of(config_of(folder, gib=0.05)))
    assert numbers(fit_of(config_of(folder, gib=0.05, slots=7, tokens=300))) == [7, 7, 300]
    assert numbers(fit_of(config_of(folder, gib=0.05, slots=100_000, tokens=10**7))) == [
        most[0],
        most[1],
        pytest.approx(plan.largest_tokens(inputs_of(config_of(folder, gib=0.05)))),
    ]


def test_a_large_gpu_takes_no_more_than_pays(folder):
    fit = fit_of(config_of(folder, gib=1000.0, processes=64))
    assert numbers(fit) == [512 * 16 // 64, 1024, 32768]
    assert fit.sizes["slots"].limit == "the responses of a step"


def test_deterministic_sizes_do_not_follow_the_machine(folder):
    for gib in (0.0, 0.05, 1000.0):
        fit = fit_of(config_of(folder, gib=gib, slots=700, tokens=400, deterministic=True))
        assert numbers(fit) == [700, 700, 400]
    assert numbers(fit_of(config_of(folder, gib=1000.0, deterministic=True))) == [256, 256, 16384]


def test_where_nothing_fits_the_least_is_tried(folder):
    assert numbers(fit_of(config_of(folder, gib=0.0001))) == [1, 1, 1]
    assert numbers(fit_of(config_of(folder, gib=0.0001, slots=5, tokens=70))) == [5, 5, 70]


def test_slots_stay_in_memory_where_they_fit_beside_everything_else(folder):
    assert fit_of(config_of(folder, gib=1.0, slots=16, tokens=500)).keeps_slots
    assert not fit_of(config_of(folder, gib=0.05)).keeps_slots  # they take all that is left
    assert not fit_of(config_of(folder, slots=16, tokens=500)).keeps_slots  # a CPU captures nothing


def test_auto_is_a_word_of_yaml_and_of_the_command_line(tmp_path, folder):
    file = tmp_path / "auto.yaml"
    sections = ("rollout: {max_active: auto}", "evaluation: {batch_size: auto}", f"training: {{{TOKENS}: auto}}")
    file.write_text("\n".join(sections))
    for arguments in ([], ["rollout.max_active=auto"], ["rollout.max_slots=auto", f"training.{TOKENS}=auto"]):
        config = load_config([f"config={file}", *arguments])
        assert [get(config, name) for name in SIZED_BY_MACHINE] == [None] * 3
    with pytest.raises(ValueError, match="rollout.max_slots is 'many'"):
        load_config([f"config={file}", "rollout.max_slots=many"])


def test_who_asks_for_no_size_gets_that_of_a_cpu():
    config = make_config()
    (chosen,) = decodings(config.rollout)
    assert SamplingConfig(**chosen).max_slots == 256
    assert UpdateSettings.of(config.training).max_tokens == 16384
