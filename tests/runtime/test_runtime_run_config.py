"""config.yaml of a run: what is written, and what counts as the same settings."""

import logging

import pytest

from configs.load import load_config, resolved
from runtime import run_config
from runtime.monitor import Monitor
from runtime.trackers import TRACKERS, Tracker

URL = "https://me:hunter22@host/v1"


def settings(tmp_path, *arguments):
    (tmp_path / "c.yaml").write_text("model: {}")
    return resolved(load_config([f"config={tmp_path}/c.yaml", *arguments]))


@pytest.fixture
def changes(tmp_path, monkeypatch):
    """changes(arguments of the run, arguments of now): the lines that differ. A text is passed on as it is."""
    monkeypatch.setenv("API", URL)
    monkeypatch.setenv("STEPS", "7")

    def compare(there, here):
        path = tmp_path / "config.yaml"
        run_config.write(path, settings(tmp_path, *there))
        assert "hunter22" not in path.read_text()
        found = run_config.differences(path, settings(tmp_path, *here), ())
        assert "hunter22" not in found
        return [line.strip() for line in found.splitlines()]

    return compare


FROM_ENV, LITERAL = ("judge.api=${oc.env:API}", "experiment.total_step=${oc.env:STEPS}"), (f"judge.api={URL}",)


@pytest.mark.parametrize("there", [FROM_ENV, (*LITERAL, "experiment.total_step=7")])
@pytest.mark.parametrize("here", [FROM_ENV, (*LITERAL, "experiment.total_step=7")])
def test_the_same_values_are_the_same_settings_however_they_are_given(changes, there, here):
    assert changes(there, here) == []


def test_another_value_of_the_same_variable_is_a_difference(changes, monkeypatch, tmp_path):
    def other():
        monkeypatch.setenv("API", URL.replace("22", "23"))
        monkeypatch.setenv("STEPS", "8")
        return FROM_ENV

    path = tmp_path / "config.yaml"
    run_config.write(path, settings(tmp_path, *FROM_ENV))
    found = run_config.differences(path, settings(tmp_path, *other()), ())
    assert "hunter" not in found
    assert [line.split(maxsplit=1) for line in found.splitlines()] == [
        ["experiment.total_step", '"${oc.env:STEPS} (another value)" -> "${oc.env:STEPS}"'],
        ["judge.api", '"${oc.env:API} (another value)" -> "${oc.env:API}"'],
    ]


def test_another_password_and_another_literal_are_differences(changes):
    assert changes(LITERAL, (f"judge.api={URL.replace('22', '23')}",)) == [
        'judge.api  "https://me:***@host/v1 (another value)" -> "https://me:***@host/v1"'
    ]
    assert changes(FROM_ENV, ("judge.api=http://x", "experiment.total_step=7")) == [
        'judge.api  "${oc.env:API}" -> "http://x"'
    ]


def test_settings_without_secrets_have_no_hashes(tmp_path):
    run_config.write(tmp_path / "config.yaml", settings(tmp_path))
    assert run_config._HIDDEN not in (tmp_path / "config.yaml").read_text()


def test_a_run_begins_again_from_its_own_config(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("API", URL)
    path = tmp_path / "config.yaml"
    run_config.write(path, settings(tmp_path, "judge.api=${oc.env:API}"))
    again = load_config([f"config={path}"])
    with caplog.at_level(logging.WARNING):
        assert again.judge.api == URL and run_config.differences(path, resolved(again), ()) == ""
    assert caplog.records == []


def test_trackers_get_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("API", URL)
    got = []
    monkeypatch.setitem(
        TRACKERS, "trackio", lambda folder, config, warn: got.append(config) or Tracker(lambda *_: 0, lambda: 0)
    )
    config = settings(tmp_path, "experiment.ssh=${oc.env:API} -v", f"judge.api={URL}")
    with Monitor(tmp_path / "run", trackers=["trackio"], config=config):
        pass
    assert (got[0]["experiment"]["ssh"], got[0]["judge"]["api"]) == ("${oc.env:API} -v", "https://me:***@host/v1")
