"""config.yaml of a run: what is written, and what counts as the same settings."""

import logging

import pytest

from configs.load import load_config, resolved
from runtime import run_config
from runtime.monitor import Monitor
from runtime.run_config import Changes, Settings, Source
from runtime.trackers import TRACKERS, Tracker

URL = "https://me:hunter22@host/v1"


def settings(tmp_path, *arguments):
    (tmp_path / "c.yaml").write_text("model: {}")
    return resolved(load_config([f"config={tmp_path}/c.yaml", *arguments]))


def differences(path, here):
    return "\n".join(run_config.changes(path, Settings(here)).refused)


@pytest.fixture
def changes(tmp_path, monkeypatch):
    """changes(arguments of the run, arguments of now): the lines that differ. A text is passed on as it is."""
    monkeypatch.setenv("API", URL)
    monkeypatch.setenv("STEPS", "7")

    def compare(there, here):
        path = tmp_path / "config.yaml"
        run_config.write(path, Settings(settings(tmp_path, *there)))
        assert "hunter22" not in path.read_text()
        found = differences(path, settings(tmp_path, *here))
        assert "hunter22" not in found
        return [line.strip() for line in found.splitlines()]

    return compare


FROM_ENV, LITERAL = ("judge.model=${oc.env:API}", "training.shrink=${oc.env:STEPS}"), (f"judge.model={URL}",)


@pytest.mark.parametrize("there", [FROM_ENV, (*LITERAL, "training.shrink=7")])
@pytest.mark.parametrize("here", [FROM_ENV, (*LITERAL, "training.shrink=7")])
def test_the_same_values_are_the_same_settings_however_they_are_given(changes, there, here):
    assert changes(there, here) == []


@pytest.mark.slow
def test_another_value_of_the_same_variable_is_a_difference(changes, monkeypatch, tmp_path):
    def other():
        monkeypatch.setenv("API", URL.replace("22", "23"))
        monkeypatch.setenv("STEPS", "8")
        return FROM_ENV

    path = tmp_path / "config.yaml"
    run_config.write(path, Settings(settings(tmp_path, *FROM_ENV)))
    found = differences(path, settings(tmp_path, *other()))
    assert "hunter" not in found
    assert [line.split(maxsplit=1) for line in found.splitlines()] == [
        ["training.shrink", '"${oc.env:STEPS} (another value)" -> "${oc.env:STEPS}"'],
        ["judge.model", '"${oc.env:API} (another value)" -> "${oc.env:API}"'],
    ]


@pytest.mark.slow
def test_another_password_and_another_literal_are_differences(changes):
    assert changes(LITERAL, (f"judge.model={URL.replace('22', '23')}",)) == [
        'judge.model  "https://me:***@host/v1 (another value)" -> "https://me:***@host/v1"'
    ]
    assert changes(FROM_ENV, ("judge.model=http://x", "training.shrink=7")) == [
        'judge.model  "${oc.env:API}" -> "http://x"'
    ]


def test_settings_without_secrets_have_no_hashes(tmp_path):
    run_config.write(tmp_path / "config.yaml", Settings(settings(tmp_path)))
    assert run_config._HIDDEN not in (tmp_path / "config.yaml").read_text()


def test_a_run_begins_again_from_its_own_config(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("API", URL)
    path = tmp_path / "config.yaml"
    run_config.write(path, Settings(settings(tmp_path, "judge.api=${oc.env:API}")))
    again = load_config([f"config={path}"])
    with caplog.at_level(logging.WARNING):
        assert again.judge.api == URL and run_config.changes(path, Settings(resolved(again))) == Changes()
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


def compared(tmp_path, there, here, sources=({}, {}), command="rl", names=None):
    """The changes from a run with these arguments and sources to those of now."""
    path = tmp_path / "config.yaml"
    run_config.write(path, Settings(settings(tmp_path, *there), command, sources[0]))
    return run_config.changes(path, Settings(settings(tmp_path, *here), command, sources[1], names or {}))


def test_keys_of_the_result_are_refused_and_the_others_taken_and_said_as_typed(tmp_path):
    now = ["experiment.threads=2", "experiment.save_every=3", "rollout.max_active=8", "training.eps=0.3"]
    found = compared(tmp_path, [], now, names={"rollout.max_slots": "rollout.max_active"})
    assert found.refused == ("  training.eps  0.2 -> 0.3",)
    assert found.taken == (
        "experiment.save_every 10 -> 3 (output)",
        "experiment.threads 0 -> 2 (speed: the same results up to rounding)",
        "rollout.max_active null -> 8 (speed: the same results up to rounding)",
    )


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ((), "the learning rate is constant"),
        (("lr_scheduler.scheduler=constant", "lr_scheduler.params.min_lr_scale=0.1"), "the learning rate is constant"),
        (("lr_scheduler.params.min_lr_scale=0.1",), "a run of this length, cosine to 0.1 of its peak"),
    ],
)
def test_another_length_is_taken_and_says_what_the_learning_rate_does(tmp_path, schedule, says):
    (line,) = compared(tmp_path, schedule, (*schedule, "experiment.total_step=90")).taken
    assert line.startswith("experiment.total_step 80 -> 90 (length: ") and says in line


def test_epochs_are_the_length_of_fine_tuning_and_the_result_of_rl(tmp_path):
    epochs = ("training.num_train_epochs=2",)
    assert compared(tmp_path, (), epochs, command="sft").taken and compared(tmp_path, (), epochs).refused


def test_one_start_s_own_keys_are_not_compared(tmp_path):
    now = ("experiment.resume=never", "experiment.overwrite=true", "dry_run=true")
    assert compared(tmp_path, (), now) == Changes()


MODEL, DATA = "model.pretrained_model", "dataset.train_dataset"


@pytest.mark.slow
def test_what_a_key_names_is_compared_by_what_it_holds(tmp_path):
    """Another content under the same name is refused, with both digests; the same one in another place is taken."""
    there = {MODEL: Source("/a", "1" * 32), DATA: Source("/t", "2" * 32)}
    same = [f"{MODEL}=/a", f"{DATA}=t"]
    assert compared(tmp_path, same, same, (there, there)) == Changes()
    other = there | {DATA: Source("/t", "3" * 32)}
    found = compared(tmp_path, same, same, (there, other))
    assert found.refused == (f"  {DATA}  /t held 222222222222 -> /t holds 333333333333",) and found.contents
    moved = there | {MODEL: Source("/b", "1" * 32)}
    found = compared(tmp_path, same, [f"{MODEL}=/b", f"{DATA}=t"], (there, moved))
    assert not found.refused and found.taken == (f'{MODEL} "/a" -> "/b" (it holds the same)',)
    changed = there | {MODEL: Source("/b", "4" * 32)}
    assert compared(tmp_path, same, [f"{MODEL}=/b", f"{DATA}=t"], (there, changed)).refused == (
        f'  {MODEL}  "/a" -> "/b"',
    )


OBJECTIVE, REWARD = "training.objective", "reward.function"


def test_code_that_was_edited_is_named_and_taken_but_a_rewards_is_not_even_named(tmp_path):
    """It may move with what it holds; other code in another place is another setting."""
    there = {OBJECTIVE: Source("/a.py:f", "1" * 32), REWARD: Source("/r.py:g", "2" * 32)}
    same = [f"{OBJECTIVE}=/a.py:f", f"{REWARD}=/r.py:g"]
    edited = {OBJECTIVE: Source("/a.py:f", "3" * 32), REWARD: Source("/r.py:g", "4" * 32)}
    found = compared(tmp_path, same, same, (there, edited))
    line = f"{OBJECTIVE}: /a.py:f has been edited since the run was last started with it"
    assert (found.refused, found.taken, found.contents) == ((), (line,), False)
    now = [f"{OBJECTIVE}=/b.py:f", f"{REWARD}=/s.py:g"]
    moved = {OBJECTIVE: Source("/b.py:f", "1" * 32), REWARD: Source("/s.py:g", "2" * 32)}
    assert not compared(tmp_path, same, now, (there, moved)).refused
    others = compared(tmp_path, same, now, (there, edited))
    assert len(others.refused) == 2 and not others.taken


@pytest.mark.slow
def test_a_judge_may_move_but_not_come_or_go(tmp_path):
    at = [f"judge.api=http://{host}:8000/v1" for host in "ab"]
    assert compared(tmp_path, at[:1], at[1:]).taken and not compared(tmp_path, at[:1], at[1:]).refused
    assert compared(tmp_path, at[:1], []).refused and compared(tmp_path, [], at[1:]).refused
    assert compared(tmp_path, ["judge.model=x"], ["judge.model=y"]).refused


def test_a_folder_of_data_may_move_with_what_it_holds(tmp_path):
    there = {DATA: Source("/t", "2" * 32)}
    here = ("dataset.folder=elsewhere",)
    assert compared(tmp_path, (), here, (there, {DATA: Source("/e/t", "2" * 32)})).refused == ()
    assert compared(tmp_path, (), here, (there, {DATA: Source("/e/t", "3" * 32)})).refused
    assert compared(tmp_path, (), here).refused


def test_a_run_without_digests_resumes_by_places_and_says_so(tmp_path, monkeypatch):
    """The config.yaml of an earlier version has relative paths and links."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    here = {MODEL: Source(str(tmp_path / "real"), "1" * 32)}
    found = compared(tmp_path, [f"{MODEL}=link"], [f"{MODEL}={tmp_path}/real"], ({}, here))
    assert (found.refused, found.taken, found.has_digests) == ((), (), False)
    assert compared(tmp_path, [f"{MODEL}=link"], [f"{MODEL}={tmp_path}"], ({}, here | {MODEL: Source("/", "")})).refused
