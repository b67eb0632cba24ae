"""Signs of life: written at new phases, and now and then inside one."""

import json
import os
import re
import time

from runtime import heartbeat
from runtime.heartbeat import Heartbeat
from runtime.monitor import Monitor


def sign_of(folder, rank=0):
    return json.loads((folder / "heartbeat" / f"rank-{rank}.json").read_text())


def test_a_new_phase_is_written_at_once_and_progress_once_a_second(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    beats = Heartbeat(tmp_path, 3)
    beats.step = 7
    beats.enter("rollout")
    first = sign_of(tmp_path, 3)
    assert (first["rank"], first["step"], first["phase"], first["pid"]) == (3, 7, "rollout", os.getpid())
    (tmp_path / "heartbeat" / "rank-3.json").unlink()
    now[0] += 0.9
    beats.beat()
    beats.enter("rollout")
    assert heartbeat.read(tmp_path) == {}
    now[0] += 0.2
    beats.beat()
    assert sign_of(tmp_path, 3)["phase"] == "rollout"
    beats.enter("update")
    assert sign_of(tmp_path, 3)["phase"] == "update"
    assert [path.name for path in (tmp_path / "heartbeat").iterdir()] == ["rank-3.json"]


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "heartbeat").write_text("in the way")
    Heartbeat(tmp_path, 0).enter("rollout")
    assert heartbeat.last_seen(tmp_path, [0]) == ""


def test_where_ranks_were_last(tmp_path):
    for rank in (0, 2):
        beats = Heartbeat(tmp_path, rank)
        beats.step = 4 + rank
        beats.enter("update")
    said = heartbeat.last_seen(tmp_path, [2, 1, 0])
    assert re.fullmatch(r"rank 0 in step 4, update, \d s ago; rank 2 in step 6, update, \d s ago", said)


def test_signs_of_an_earlier_job_are_left_out(tmp_path):
    Heartbeat(tmp_path, 0).enter("update")
    Heartbeat(tmp_path, 1).enter("update")
    path = tmp_path / "heartbeat" / "rank-1.json"
    path.write_text(json.dumps(sign_of(tmp_path, 1) | {"time": "2026-01-01T00:00:00.000+00:00"}))
    assert heartbeat.last_seen(tmp_path, [1]) == "" and heartbeat.longest_silent(tmp_path, [0, 1]) == 1
    assert heartbeat.last_seen(tmp_path, [0, 1]).startswith("rank 0 in step 0, update, ")


def test_who_was_silent_longest(tmp_path):
    for rank in (2, 0):
        Heartbeat(tmp_path, rank).enter("update")
        time.sleep(0.01)
    assert heartbeat.longest_silent(tmp_path, [0, 2]) == 2
    assert heartbeat.longest_silent(tmp_path, [0, 1, 2]) == 1


def test_where_to_resume(tmp_path):
    nothing = f"{tmp_path} has no checkpoint yet: the same command "
    incomplete = tmp_path / "ckpt" / "step-000012"
    incomplete.mkdir(parents=True)
    assert heartbeat.where_to_resume(tmp_path, "auto") == nothing + "begins anew"
    assert heartbeat.where_to_resume(tmp_path, "/other/step-000004") == nothing + "begins with /other/step-000004 again"
    for step in (2, 1000000, 999999):
        path = tmp_path / "ckpt" / f"step-{step:06d}"
        (path / "trainer").mkdir(parents=True)
        (path / "trainer" / "files.json").touch()
    (tmp_path / "ckpt" / "step-2000000-good" / "trainer").mkdir(parents=True)
    (tmp_path / "ckpt" / "step-2000000-good" / "trainer" / "files.json").touch()
    newest = f"{tmp_path}/ckpt/step-1000000"
    for resume in ("auto", "/other/step-000004"):
        assert heartbeat.where_to_resume(tmp_path, resume) == f"The same command resumes from {newest}"
    assert heartbeat.where_to_resume(tmp_path, "never").startswith("With experiment.resume=auto the same command")


def test_a_monitors_phases_are_signs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 0.0)
    monitor, seen = Monitor(tmp_path, enabled=False, rank=1), []
    assert sign_of(tmp_path, 1)["phase"] == "start"
    monitor.begin(5)
    with monitor.timed("eval"):
        seen.append(sign_of(tmp_path, 1)["phase"])
        with monitor.progress(2, "eval static") as bar:
            seen.append(sign_of(tmp_path, 1)["phase"])
            before = sign_of(tmp_path, 1)["time"]
            while sign_of(tmp_path, 1)["time"] == before:
                bar.advance()
    assert seen == ["eval", "eval static"] and sign_of(tmp_path, 1)["step"] == 5
    monitor.final({})
    assert sign_of(tmp_path, 1)["phase"] == "done"
    assert capsys.readouterr().out == ""
