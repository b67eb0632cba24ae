import json
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from runtime import bars, curves, heartbeat, timing, trackers
from runtime.files import append_jsonl
from runtime.monitor import Monitor
from runtime.text import NUMBER_WIDTH, format_number, format_seconds

ROOT = Path(__file__).parents[2]
METRICS = {
    "reward/mean": 0.5,
    "completion_length": 61.25,
    "loss": -0.0123,
    "kl": 1.2e-5,
    "grad_norm": 0.83,
    "tokens_per_second": 12345.6,
}


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.0000"),
        (0.12345, "0.1235"),
        (1.23456, "1.235"),
        (-61.256, "-61.26"),
        (123.456, "123.5"),
        (12345.6, "12346"),
        (1.2e-5, "1.2e-05"),
        (-2.5e8, "-2.5e+08"),
        (7, "7"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text
    assert len(text) <= NUMBER_WIDTH


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (7.26, "7.3s"), (59.97, "1m00s"), (245, "4m05s"), (10920, "3h02m"), (187200, "2d04h")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


HOSTILE = "\x1b]0;title\x07\x1b[2Ja\rb\x9b1mc\x7f\u202ed\ud800"


def test_a_monitor_prints_and_logs_no_control_character_raw(tmp_path, capsys):
    show = Monitor(tmp_path)
    show.banner(HOSTILE, {HOSTILE: HOSTILE})
    show.event(HOSTILE)
    show.warning(HOSTILE)
    show.step(1, 2, {HOSTILE: 1.0}, shown=(HOSTILE,))
    show.evaluation(1, {"accuracy": 0.5, HOSTILE: 1.0}, name=HOSTILE, shown=(HOSTILE,))
    show.final({"text": HOSTILE})
    out, err = capsys.readouterr()
    text = out + err + (tmp_path / "metrics.jsonl").read_text()
    assert text.count("title") >= 9 and set(re.findall("[^\x20-\x7e]", text)) == {"\n"}
    assert logged(tmp_path)[0][HOSTILE] == 1.0


def test_a_response_is_shown_cut_and_without_control_characters(tmp_path, capsys, monkeypatch):
    seen = []
    tracker = trackers.Tracker(lambda step, metrics: None, lambda: None, lambda *given: seen.append(given))
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda *_: tracker)
    row = {"task": "7", "prompt": "a\x1b[2J\nb", "completion": "x" * 300 + "y" * 900, "answer": None, "reward": 0.5}
    Monitor(tmp_path, trackers=["wandb"]).samples(3, [row | {"columns": {}}, {"task": "8"}])
    Monitor(tmp_path, enabled=False).samples(3, [row])
    assert capsys.readouterr().out.splitlines() == [
        "a response of step 3",
        "  task        7",
        "  prompt      a\\x1b[2J",
        "              b",
        "  completion  " + "x" * 300 + " ... " + "y" * 300,
        "  reward      0.5",
    ]
    texts = {"task": "7", "prompt": "a\\x1b[2J\nb", "completion": row["completion"], "reward": "0.5"}
    assert seen == [(3, "samples", [texts, {"task": "8"}])]


def test_step_lines_are_aligned_and_logged(tmp_path, capsys):
    show = Monitor(tmp_path / "run")
    with show.timed("rollout"), show.timed("update"):
        pass
    show.step(9, 10, METRICS)
    show.step(10, 10, {"reward/mean": 123.0, "loss": math.nan, "kl": torch.tensor(-2.5e-9), "extra": 3})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step  9/10  reward   0.5000  len    61.25  loss  -0.0123  kl  1.2e-05  grad   0.8300")
    assert lines[1].startswith("step 10/10  reward    123.0  len        -  loss      nan  kl -2.5e-09  grad        -")
    assert len(lines[0]) == len(lines[1]) <= 120
    first, second = logged(tmp_path / "run")
    assert first.items() >= {"step": 9, **METRICS}.items()
    assert {key for key in first if key.startswith("time/")} == {
        "time/at",
        "time/rollout_seconds",
        "time/update_seconds",
        "time/step_seconds",
    }
    assert second["loss"] is None
    assert second["kl"] == pytest.approx(-2.5e-9)
    assert second["extra"] == 3
    assert "time/rollout_seconds" not in second


def test_times_add_up_and_evaluations_do_not_count(tmp_path, monkeypatch):
    clock = iter([0.0, 3.0, 3.0, 5.0, 10.0, 100.0, 104.0])
    show = Monitor(tmp_path)
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    for _ in range(2):
        with show.timed("rollout"):
            pass
    show.step(1, 4, {})
    show.evaluation(1, {"accuracy": 0.5})
    show.step(2, 4, {})
    assert [row.get("time/step_seconds") for row in logged(tmp_path)] == [10.0, None, 4.0]
    assert logged(tmp_path)[0]["time/rollout_seconds"] == 5.0


def test_a_block_inside_another_counts_under_its_own_name_alone(tmp_path, monkeypatch):
    clock = iter([0.0, 2.0, 5.0, 9.0, 9.0])
    show = Monitor(tmp_path)
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with show.timed("reward"), show.timed("judge"):
        pass
    show.step(1, 1, {})
    (row,) = logged(tmp_path)
    assert (row["time/judge_seconds"], row["time/reward_seconds"], row["time/step_seconds"]) == (3.0, 6.0, 9.0)


def test_after_an_inner_block_the_heartbeat_names_the_outer_one_again(tmp_path):
    show = Monitor(tmp_path)
    with show.timed("rollout"):
        with show.timed("resume"):
            pass
        assert heartbeat.read(tmp_path)[0]["phase"] == "rollout"


def test_shown_chooses_the_columns(tmp_path, capsys):
    Monitor(tmp_path).step(3, 5, {"loss": 2.0, "learning_rate": 1e-6}, shown=("loss", "learning_rate"))
    assert capsys.readouterr().out.startswith("step 3/5  loss    2.000  lr  1.0e-06    0.0s  eta   0.0s")


def test_quiet_steps_are_logged_and_counted_and_not_shown(tmp_path, capsys):
    show = Monitor(tmp_path)
    for step in (1, 2, 3):
        with show.timed("update"):
            pass
        show.step(step, 3, {"loss": 1.0}, quiet=step < 3)
    assert capsys.readouterr().out.startswith("step 3/3")
    assert [row["step"] for row in logged(tmp_path)] == [1, 2, 3]
    assert all(row["time/update_seconds"] > 0 for row in logged(tmp_path))


def test_evaluations_of_several_entries_are_kept_apart(tmp_path, capsys):
    show = Monitor(tmp_path)
    for step, first, second in ((0, 0.3, 0.4), (5, 0.5, 0.2)):
        show.evaluation(step, {"accuracy": first}, name="static_4")
        show.evaluation(step, {"accuracy": second}, name="dynamic_4")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "eval static_4 after step 5  accuracy 0.5000  (best accuracy before: 0.3000)",
        "eval dynamic_4 after step 5  accuracy 0.2000  (best accuracy before: 0.4000)",
    ]
    assert curves.points(logged(tmp_path), "eval/dynamic_4/accuracy") == ([0, 5], [0.4, 0.2])


def test_evaluation_is_compared_with_the_best_before_it_even_after_a_restart(tmp_path, capsys):
    Monitor(tmp_path).evaluation(0, {"accuracy": 0.25, "tokens_per_forward": 1.5})
    Monitor(tmp_path).evaluation(10, {"accuracy": 0.5})
    assert capsys.readouterr().out.splitlines() == [
        "eval after step 0  accuracy 0.2500  tok/forward 1.500",
        "eval after step 10  accuracy 0.5000  (best accuracy before: 0.2500)",
    ]
    row = {"step": 0, "eval/accuracy": 0.25, "eval/tokens_per_forward": 1.5}
    assert {key: value for key, value in logged(tmp_path)[0].items() if key != "time/at"} == row


def test_banner_events_and_final_on_stdout_warnings_on_stderr(tmp_path, capsys):
    with Monitor(tmp_path) as show:
        show.banner("Run [x]", {"model": "SDAR [fp32]", "seed": "0"})
        show.event("saved [bold] ckpt/step-1")
        for text in ("3 prompts dropped", "3 prompts dropped", "another"):
            show.warning(text)
        show.final({"accuracy_after": 0.5, "by": [{"x": math.inf}], "steps": 2})
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "Run [x]",
        "  model  SDAR [fp32]",
        "  seed   0",
        "saved [bold] ckpt/step-1",
        'final {"accuracy_after": 0.5, "by": [{"x": null}], "steps": 2}',
    ]
    assert err.splitlines() == ["warning: 3 prompts dropped", "warning: another"]


def test_plain_progress_speaks_seldom(tmp_path, capsys, monkeypatch):
    clock = iter([100.0, 101.0, 116.0, 117.0])
    show = Monitor(tmp_path)
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with show.progress(8, "rollout") as bar:
        for _ in range(3):
            bar.advance(2)
    assert bar.done == 6
    assert capsys.readouterr().err.splitlines() == ["rollout 4/8 (50%) 16.0s, 16.0s to go"]


def test_other_ranks_are_silent_and_write_only_signs_of_life(tmp_path, capsys):
    show = Monitor(tmp_path / "run", trackers=["tensorboard"], enabled=False, rank=1)
    show.banner("t", {"a": "b"})
    with show.timed("rollout"), show.progress(3, "rollout") as bar:
        bar.advance()
    show.step(1, 2, METRICS)
    show.evaluation(1, {"accuracy": 0.5})
    show.event("e")
    show.warning("w")
    assert show.curves() is None
    show.final({"a": 1})
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["rank-1.json"]


def on_a_terminal(code, *arguments, columns=100):
    """What `code` leaves on a terminal of 30 lines, control sequences included."""
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "30"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, cwd=ROOT, env=environment)
    os.close(side)
    seen = b""
    try:
        while piece := os.read(main, 65536):
            seen += piece
    except OSError:
        pass
    os.close(main)
    assert child.wait() == 0, seen.decode()
    return seen.decode()


@pytest.mark.slow
def test_terminal_gets_a_box_and_bars_with_lines_above_them(tmp_path):
    code = """if True:
        import sys, time; from pathlib import Path; from runtime.monitor import Monitor
        show = Monitor(Path(sys.argv[1]))
        show.banner("Run", {"model": "SDAR [fp32]"})
        with show.progress(8, "rollout") as bar, show.progress(3, "inner") as inner:
            bar.advance(5); inner.advance(); time.sleep(0.3); show.event("an event"); show.warning("a warning")
        show.step(1, 2, {})
        show.final({"a": 1})
    """
    seen = on_a_terminal(code, tmp_path)
    assert "╭─" in seen and "SDAR [fp32]" in seen
    assert "5/8" in seen and "1/3" in seen
    assert seen.index("5/8") < seen.index("an event") < seen.index("a warning") < seen.index("step 1/2")
    assert seen.rstrip().splitlines()[-1] == 'final {"a": 1}'


def test_80_columns_cut_no_number(tmp_path):
    code = """if True:
        import sys; from pathlib import Path; from runtime.monitor import Monitor
        show = Monitor(Path(sys.argv[1]))
        names = ("reward/mean", "completion_length", "loss", "kl", "grad_norm", "tokens_per_second")
        show.step(12345, 100000, dict.fromkeys(names, -1.2345e-10))
        figures = {"accuracy": 0.1234, "stderr": 0.1, "reward": 1.5, "length": 99.0, "tokens_per_second": 1e9}
        show.evaluation(12345, figures, name="low_confidence")
        show.banner("the banner", {"folder": "x" * 100})
        with show.progress(123456, "eval low_confidence_dynamic, block_size 4, top_k 1, 0.9") as bar:
            bar.advance(12345)
            bar._progress.refresh()
    """
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal(code, tmp_path, columns=80))
    seen, drawn = seen[: seen.index("the banner")], seen[seen.index("the banner") :]
    assert drawn.count("x") == 100 and re.search(r"12345/123456 \d:\d\d:\d\d left +[-\d]+:", drawn)
    lines = seen.replace("\r", "").splitlines()
    assert max(map(len, lines)) <= 80 and seen.count("-1.2e-10") == 6
    assert lines[0].startswith("step  12345/100000") and lines[1].startswith("  ")
    assert any("eval low_confidence after step 12345" in line for line in lines)


@pytest.mark.slow
def test_curves_draw_what_there_is(tmp_path):
    rows = [{"step": step, "reward/mean": step / 50, "kl": None, "loss": math.nan} for step in range(1, 51)]
    rows += [{"step": step, "eval/accuracy": step / 100} for step in (0, 25, 50)]
    append_jsonl(tmp_path / "metrics.jsonl", rows)
    path = Monitor(tmp_path).curves()
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_curves_without_numbers_or_file(tmp_path):
    show = Monitor(tmp_path)
    assert show.curves() is None
    append_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "note": 1}])
    assert show.curves() is None
    assert not (tmp_path / "curves.png").exists()


def test_curves_without_matplotlib_warn_by_name(tmp_path, capsys, monkeypatch):
    append_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert Monitor(tmp_path).curves() is None
    assert "warning: curves.png was not drawn: ModuleNotFoundError" in capsys.readouterr().err


def test_points_take_the_last_row_of_a_step():
    rows = [
        {"step": 1, "kl": 1.0},
        {"step": 2, "kl": 5.0},
        {"step": 2, "kl": 2.0},
        {"step": 3, "kl": None},
        {"kl": 9.0},
    ]
    assert curves.points(rows, "kl") == ([1, 2], [1.0, 2.0])


def test_smoothing_keeps_a_constant_and_has_no_lag():
    assert curves.smoothed([3.0] * 20, 2.0) == pytest.approx([3.0] * 20)
    straight = curves.smoothed(list(range(41)), 2.0)
    assert straight[20] == pytest.approx(20.0)
    assert straight[0] > 0


class Broken:
    """A tracker that raises at the second log and at close."""

    def __init__(self):
        self.steps = []

    def log(self, step, metrics):
        self.steps.append(step)
        if len(self.steps) == 2:
            raise ConnectionError("offline")

    def close(self):
        raise RuntimeError("never reached once it is left out")


def test_tracker_that_raises_is_left_out_and_training_goes_on(tmp_path, capsys, monkeypatch):
    """Fault 76."""
    broken = Broken()
    starter = lambda folder, config, warn: trackers.Tracker(broken.log, broken.close)  # noqa: E731
    monkeypatch.setitem(trackers.TRACKERS, "trackio", starter)
    with Monitor(tmp_path, trackers=["trackio"]) as show:
        for step in range(1, 5):
            show.step(step, 4, {"loss": 1.0})
    assert broken.steps == [1, 2]
    assert len(logged(tmp_path)) == 4
    errors = capsys.readouterr().err.splitlines()
    assert errors == ["warning: tracker trackio failed, the run continues without it: ConnectionError: offline."]


@pytest.mark.parametrize("name", list(trackers.TRACKERS))
def test_missing_tracker_is_named_with_its_fix(tmp_path, capsys, monkeypatch, name):
    """Fault 76."""
    for module in ("wandb", "trackio", "mlflow", "swanlab", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with Monitor(tmp_path, trackers=[name]) as show:
        show.step(1, 1, {"loss": 1.0})
    assert len(logged(tmp_path)) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"warning: tracker {name} failed, the run continues without it: ModuleNotFoundError")
    assert errors[0].endswith(f"pip install -c requirements-extras.txt {name}")


def test_unknown_tracker(tmp_path):
    with pytest.raises(
        ValueError, match="unknown tracker 'wandbb': choose among tensorboard, wandb, trackio, mlflow, swanlab"
    ):
        Monitor(tmp_path, trackers=["wandbb"])


@pytest.mark.slow
def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is an optional package")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Monitor(tmp_path, trackers=["tensorboard"]) as show:
        show.step(1, 2, {"loss": 2.0})
        show.step(2, 2, {"loss": 1.0})
        show.samples(2, [{"task": "1", "completion": "a|b\n<b>$x$"}])
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    (shown,) = events.Tensors("samples/text_summary")
    assert b"| 1 | a\\|b<br>&lt;b&gt;\\$x\\$ |" in shown.tensor_proto.string_val[0]


def test_wandb_that_cannot_log_in_is_kept_offline(tmp_path, capsys, monkeypatch):
    """With a stand-in for wandb's module: no login works and every init but an offline one hangs."""
    calls = []

    class Wandb:
        @staticmethod
        def login(prompt):
            raise ConnectionError("no such host")

        @staticmethod
        def init(*, project, name, config, dir, mode):
            assert mode == "offline"
            calls.append((name, config))
            return Wandb()

        def log(self, metrics, step):
            calls.append((step, metrics["loss"]))

        def finish(self):
            calls.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with Monitor(tmp_path / "demo", trackers=["wandb"], config={"seed": 1}) as show:
        show.step(1, 1, {"loss": 2.0})
    assert calls == [("demo", {"seed": 1}), (1, 2.0), "finished"]
    assert "kept offline" in capsys.readouterr().err


def test_figures_of_all_decodings_are_a_table_in_trackers(tmp_path, monkeypatch):
    seen = []
    tracker = trackers.Tracker(lambda step, metrics: None, lambda: None, lambda *given: seen.append(given))
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda *_: tracker)
    found = {"greedy": {"accuracy": 0.5}, "T1": {"accuracy": math.nan, "reward": 0.25}}
    Monitor(tmp_path, trackers=["wandb"]).evaluation_table(4, found)
    greedy, sampled = {"decoding": "greedy", "accuracy": 0.5}, {"decoding": "T1", "accuracy": None, "reward": 0.25}
    assert seen == [(4, "evaluations", [greedy, sampled])]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlflow", "swanlab", "trackio", "wandb"])
def test_trackers_that_are_installed_take_numbers_and_tables(name, tmp_path, capsys, monkeypatch):
    pytest.importorskip(name, reason=f"{name} is an optional package")
    for variable in ("MLFLOW_TRACKING_URI", "SWANLAB_API_KEY", "SWANLAB_MODE", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    with Monitor(tmp_path / "demo", trackers=[name], config={"training": {"seed": 1}}) as show:
        show.step(1, 2, {"loss": 2.0, "pass@1": 0.5, "eval/x/accuracy": 0.1})
        show.samples(1, [{"task": "1", "completion": "a|b", "reward": 0.5}])
        show.evaluation_table(1, {"greedy": {"accuracy": 0.5}})
        show.step(2, 2, {"loss": 1.0})
    errors = capsys.readouterr().err
    assert "failed" not in errors and "continues without it" not in errors
