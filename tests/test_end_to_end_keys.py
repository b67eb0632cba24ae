"""Every key of the schema has an effect in a command, or `configs.commands` says that the command does not read it."""

import dataclasses
import sys
from pathlib import Path

import pytest
from end_to_end import EVAL, RL, SFT

from configs import load_config, schema
from configs.commands import reads
from configs.fields import flat_fields
from train import evaluation, rl, sft

ROOT = f"{Path(__file__).parents[1]}/"
RUNS = {
    "rl": (rl, RL, ["experiment.total_step=1", "model.value_base_model={model}"]),
    "sft": (sft, SFT, ["training.num_train_epochs=1"]),
    "eval": (evaluation, EVAL, []),
}
ELSEWHERE = {
    **dict.fromkeys(("config", "dry_run"), "of the command itself"),
    **dict.fromkeys((f"experiment.{name}" for name in ("launcher", "join_seconds", "ssh", "ssh_user")), "launchers"),
    "dataset.over_long_prompts": "where a prompt is too long",
    "dataset.image_root": "tasks with pictures",
    "reward.number_tolerance": "short answers about pictures",
    "optimizer.name": "it has one choice",
    "training.mask_times_per_sample": "random masks",
    "training.loss_weight": "random masks",
    "training.shrink": "masks of a trajectory",
    "experiment.early_stopping_metric": "runs that may stop early",
    "experiment.early_stopping_gain": "runs that may stop early",
    "experiment.eval_first": "evaluations, held-out losses",
    "judge": "where there is a judge",
    "execute": "tasks of code",
}
"""Keys, or whole sections, that the runs below do not read -> where they are read."""


def sections(kind=schema.Config, prefix=""):
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(item.type):
            yield item.type, f"{prefix}{item.name}."
            yield from sections(item.type, f"{prefix}{item.name}.")


@pytest.fixture
def keys_read(monkeypatch):
    """The keys that code outside of configs/ has asked a config for."""
    found = set()
    for kind, prefix in sections():
        own = {item.name for item in dataclasses.fields(kind)}

        def noted(self, name, own=own, prefix=prefix):
            caller = sys._getframe(1).f_code.co_filename
            if name in own and caller.startswith(ROOT) and not caller.startswith(f"{ROOT}configs/"):
                found.add(prefix + name)
            return object.__getattribute__(self, name)

        monkeypatch.setattr(kind, "__getattribute__", noted)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS)
def test_a_command_reads_every_key_that_it_does_not_disown(shop, keys_read, command):
    """A new key that a command ignores has to be listed in configs.commands."""
    module, text, arguments = RUNS[command]
    module.run(load_config(shop.arguments(text, *(each.format(model=shop.model) for each in arguments))))
    disowned = {key for key, _ in flat_fields() if not reads(command, key)}
    elsewhere = {key for key, _ in flat_fields() if key in ELSEWHERE or key.partition(".")[0] in ELSEWHERE}
    assert {key for key, _ in flat_fields()} - keys_read - disowned - elsewhere == set()
