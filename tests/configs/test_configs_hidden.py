"""Values of environment variables: used, and written nowhere."""

import pickle

import pytest
from omegaconf import OmegaConf

from configs.hidden import Hidden, actual, holds_hidden, shown
from configs.load import load_config, resolved

SECRET = "hunter22"


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("STEPS", "7")


def load(tmp_path, text, *arguments):
    (tmp_path / "c.yaml").write_text(text)
    return load_config([f"config={tmp_path}/c.yaml", *arguments])


def test_a_value_of_the_environment_is_used_and_its_text_written(tmp_path):
    text = """
    experiment: {project: "x-${oc.env:SECRET}", total_step: "${oc.env:STEPS}", ssh: "${experiment.project} -v"}
    training: {objective_params: {alpha: "${oc.env:STEPS}", beta: 2}, max_gen_length: "${rollout.max_new_tokens}"}
    dataset: {columns: {question: "${.answer}", answer: "${oc.env:SECRET}", id: "n"}}
    """
    config = load(tmp_path, text)
    assert (config.experiment.project, config.experiment.total_step) == (f"x-{SECRET}", 7)
    assert config.experiment.ssh == f"x-{SECRET} -v" and config.dataset.columns["question"] == SECRET
    tree = resolved(config)
    assert SECRET not in repr(tree) and SECRET not in OmegaConf.to_yaml(tree)
    assert shown(tree["experiment"]["ssh"]) == "${experiment.project} -v" and holds_hidden(tree)
    assert tree["experiment"]["total_step"] == "${oc.env:STEPS}" and tree["training"]["objective_params"]["beta"] == 2
    assert tree["training"]["max_gen_length"] == config.rollout.max_new_tokens  # no variable in it: its value
    assert actual(tree)["experiment"]["project"] == f"x-{SECRET}"


def test_a_list_keeps_what_is_not_of_the_environment(tmp_path):
    config = load(tmp_path, "training: {objective_params: {names: [a, '${oc.env:SECRET}']}}")
    assert config.training.objective_params["names"] == ["a", SECRET]
    assert shown(resolved(config)["training"]["objective_params"]["names"]) == ["a", "${oc.env:SECRET}"]


def test_a_value_that_was_replaced_since_is_written_as_it_is(tmp_path):
    from dataclasses import replace

    config = load(tmp_path, "model: {pretrained_model: '${oc.env:SECRET}'}")
    config = replace(config, model=replace(config.model, pretrained_model="/abs"))
    assert resolved(config)["model"]["pretrained_model"] == "/abs"


@pytest.mark.parametrize(
    "key",
    [
        *("experiment.total_step", "rollout.temperature", "rollout.block_size", "training.mixed_precision"),
        *("rollout.use_cache", "judge.timeout_seconds"),
    ],
)
def test_no_message_shows_the_value(tmp_path, key):
    with pytest.raises(ValueError) as caught:
        load(tmp_path, "model: {}", key + "=${oc.env:SECRET}")
    error = caught.value
    assert key in str(error) and "${oc.env:SECRET}" in str(error) and SECRET not in str(error)
    assert error.__cause__ is None or SECRET not in str(error.__cause__)


def test_a_variable_that_is_not_set_is_named(tmp_path):
    with pytest.raises(ValueError, match="NO_SUCH_VARIABLE.*experiment.ssh"):
        load(tmp_path, "experiment: {ssh: '${oc.env:NO_SUCH_VARIABLE}'}")


def test_a_url_whose_password_was_left_out_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"judge.api=https://me:\*\*\*@host: its password was left out"):
        load(tmp_path, "judge: {api: 'https://me:***@host'}")


def test_hidden_text_travels_between_processes():
    found = pickle.loads(pickle.dumps(Hidden("${oc.env:X}", 5)))
    assert (found, found.value) == ("${oc.env:X}", 5)
