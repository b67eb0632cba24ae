"""Names of other projects suggest the keys here."""

import pytest

from configs import load_config
from configs.elsewhere import TABLE
from configs.fields import flat_fields
from configs.help import help_text
from configs.hints import ELSEWHERE, NOTES
from configs.spellings import RENAMED

KNOWN = {name for name, _ in flat_fields()}


def message(tmp_path, *arguments):
    path = tmp_path / "c.yaml"
    path.write_text("")
    with pytest.raises(ValueError) as error:
        load_config([f"config={path}", *arguments])
    return str(error.value)


def test_every_hint_is_a_key_and_no_name_is_one():
    assert {key for keys in ELSEWHERE.values() for key in keys} <= KNOWN
    assert not ELSEWHERE.keys() & NOTES.keys()
    assert not (ELSEWHERE.keys() | NOTES.keys()) & (KNOWN | RENAMED.keys())
    assert all(name == name.lower() for name in (*ELSEWHERE, *NOTES))


@pytest.mark.slow
@pytest.mark.parametrize("heading", TABLE)
def test_each_name_of_the_table_typed_names_the_key_here(tmp_path, heading):
    """The table is the page docs/from_trl_verl.md too."""
    for entry in TABLE[heading]:
        for name in entry.names:
            said = message(tmp_path, f"{name}=1")
            assert all(f"{key!r}" in said for key in entry.keys.split()) and (entry.keys or entry.note in said), name


def test_no_name_stands_twice_in_the_table():
    names = [name for entries in TABLE.values() for entry in entries for name in entry.names]
    assert len(names) == len(set(names)) > 300


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("num_generations", "'rollout.num_response_per_task'"),
        ("actor_rollout_ref.rollout.n", "'rollout.num_response_per_task'"),
        ("training.num_generations", "'rollout.num_response_per_task'"),
        ("lr", "'optimizer.params.learning_rate'"),
        ("learning_rate", "'optimizer.params.learning_rate'"),
        ("training.learning_rate", "'optimizer.params.learning_rate'"),
        ("max_steps", "'experiment.total_step' or 'training.max_steps'"),
        ("beta", "'training.beta'"),
        ("epsilon", "'training.eps'"),
        ("actor_rollout_ref.actor.clip_ratio_high", "'training.eps_high'"),
        ("actor.optim.lr", "'optimizer.params.learning_rate'"),
        ("critic.optim.lr", "'optimizer.params.value_learning_rate'"),
        ("data.train_batch_size", "'rollout.num_task_per_step' or 'training.batch_size_lm'"),
        ("per_device_train_batch_size", "'training.batch_size_lm'"),
        ("gradient_accumulation_steps", "'training.gradient_accumulation_steps'"),
        ("max_completion_length", "'rollout.max_new_tokens'"),
        ("evaluation.max_completion_length", "'evaluation.max_new_tokens'"),
        ("temperature", "'rollout.temperature' or 'evaluation.temperature'"),
        ("Model.Model-Name", "'model.pretrained_model'"),
        ("lora_r", "'lora.rank'"),
        ("actor_rollout_ref.model.path", "'model.pretrained_model'"),
        ("trainer.total_epochs", "'experiment.total_step' or 'training.num_train_epochs'"),
        ("reward_funcs", "'reward.function'"),
    ],
)
def test_a_name_from_elsewhere_suggests_ours(tmp_path, typed, meant):
    assert f"unknown key {typed!r} in the command line. Did you mean {meant}" in message(tmp_path, f"{typed}=1")


def test_what_needs_no_key_is_reported(tmp_path):
    assert "unknown key 'logging_steps' in the command line. Every step is logged" in message(
        tmp_path, "logging_steps=1"
    )


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("--learning_rate=1e-5", "Did you mean 'optimizer.params.learning_rate'?"),
        ("--num-generations", "Did you mean 'rollout.num_response_per_task'?"),
        ("--training.eps=0.1", "Did you mean 'training.eps', without dashes?"),
        ("-v", "is not of the form key=value. Usage"),
        ("8", "is not of the form key=value. Usage"),
    ],
)
def test_arguments_with_dashes_are_no_traceback(tmp_path, typed, says):
    assert says in message(tmp_path, typed)


@pytest.mark.parametrize("width", [40, 80])
def test_help_fits_a_terminal(width):
    text = help_text("usage", "rl", width)
    own = text[: text.index("dLLM-RL's names")].splitlines()[4:]
    assert max(len(line) for line in own if line.startswith("      ")) < width
    assert all(f"\n  {name} (" in text for name in ("training.eps", "rollout.temperature"))
