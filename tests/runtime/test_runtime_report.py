import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from run_folders import NASTY, lines, rl_run

from configs import load_config, resolved
from runtime import run_config
from runtime.monitor import Monitor
from runtime.report import writer
from runtime.report.page import _commands, build_page, write_report
from runtime.report.paired import mcnemar, paired
from runtime.report.panels import MOST_POINTS, panels_of, thinned
from runtime.report.recipe import about
from runtime.report.run_data import About, lines_of, read_run
from sample.viewer.report import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return rl_run(tmp_path_factory.mktemp("runs") / "a")


def data_of(page):
    start = page.index('id="data">') + len('id="data">')
    return json.loads(page[start : page.index("</script>", start)])


def chart(data, title):
    return next(chart for chart in data["charts"] if chart["title"] == title)


def test_a_report_shows_every_metric_and_none_twice(run):
    data = data_of(write_report(run).read_text())
    titles = [chart["title"] for chart in data["charts"]]
    assert len(set(titles)) == len(titles)
    wanted = {"reward", "parts of the reward", "accuracy", "response length", "tokens per forward", "KL", "entropy",
              "sampler against trainer", "gradient norm", "learning rate", "memory", "time by phase"}  # fmt: skip
    assert wanted <= set(titles)
    assert {chart["title"] for chart in data["charts"] if chart.get("more")} == {"reward/std", "weights_version"}
    assert [curve["label"] for curve in chart(data, "parts of the reward")["curves"]] == ["verifier", "style"]


def test_accuracy_has_its_standard_error_at_each_step(run):
    first = chart(data_of(build_page([read_run(run)])), "accuracy")["curves"][0]
    assert first["x"] == [0, 15, 30, 45, 60] and len(first["error"]) == 5 and first["error"][1] > 0.01


def test_generated_markup_stays_text(run):
    page = write_report(run).read_text()
    data = data_of(page)
    assert any("</script><script>" in sample["completion"] for sample in data["samples"])
    assert NASTY not in page and "\u202e" not in str(data)
    assert page.count("<script") == 2 and "<img" not in page


def test_the_page_names_how_to_go_on(run):
    commands = dict(data_of(build_page([read_run(run)]))["commands"])
    assert commands["evaluate"].startswith("python eval.py config=configs/tiny_eval.yaml model.pretrained_model=")
    assert any(command.startswith("python rl.py config=") for command in commands.values())


@pytest.mark.parametrize(("command", "key"), [("rl", "experiment.total_step"), ("sft", "training.max_steps or")])
def test_a_finished_run_goes_on_by_the_key_of_its_length(run, command, key):
    given = read_run(run)
    given = replace(given, about=replace(given.about, command=command), finished=True)
    assert any(f"go on (with a larger {key}" in purpose for purpose, _ in _commands(given))


def test_a_run_being_written_is_read_as_far_as_it_is(run, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n{"step": 2, "reward/me')
    (tmp_path / "config.yaml").write_text("experiment: [")
    (tmp_path / "report.json").write_text('{"command"')
    data = data_of(write_report(tmp_path).read_text())
    assert chart(data, "reward")["curves"][0]["x"] == [1]


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    rows = [
        {"step": 1, "loss": None},
        {"step": 2, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": math.inf},
    ]
    lines(tmp_path / "metrics.jsonl", rows)
    assert read_run(tmp_path).curves()["loss"] == ([2], [2.0])


def test_a_folder_of_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is no folder of a run: it has no metrics.jsonl" in capsys.readouterr().err


def test_long_curves_are_thinned_to_means():
    x, y = thinned(range(10 * MOST_POINTS), [float(i % 10) for i in range(10 * MOST_POINTS)])
    assert len(x) == MOST_POINTS and set(y) == {4.5}


def test_samples_are_read_from_a_log_without_reading_it_all(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    lines(path, [{"step": i, "pad": "x" * 50} for i in range(2000)])
    found = lines_of(path, 30)
    steps = [row["step"] for _, row in found]
    assert len(steps) == 30 and steps[-10:] == list(range(1990, 2000)) and steps[0] == 0 and 800 < steps[10] < 1300
    offset, row = found[5]
    with path.open("rb") as file:
        file.seek(offset)
        assert json.loads(file.readline()) == row


def test_the_report_is_at_most_every_few_seconds_and_of_another_process(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(writer, "_start", lambda folder: started.append(folder) or FakeProcess())
    monitor = Monitor(tmp_path)
    for step in range(1, 50):
        monitor.step(step, 50, {"loss": 1.0}, quiet=True)
    assert not started
    monkeypatch.setattr(writer, "EVERY_SECONDS", 0.0)
    monitor.step(50, 50, {"loss": 1.0}, quiet=True)
    monitor.step(51, 51, {"loss": 1.0}, quiet=True)
    assert started == [tmp_path]
    assert not (tmp_path / "report.html").exists()
    monitor.close()
    assert chart(data_of((tmp_path / "report.html").read_text()), "loss")["curves"][0]["x"][-1] == 51


class FakeProcess:
    def __init__(self):
        self.stdin = open(os.devnull, "wb")  # noqa: SIM115

    def communicate(self, order, timeout):
        self.stdin.close()


def test_the_writer_writes_when_told_and_once_more_when_the_run_is_gone(run, monkeypatch):
    written = []
    monkeypatch.setattr("runtime.report.page.write_report", lambda folder: written.append(folder))
    monkeypatch.setattr("runtime.curves.draw", lambda *given: None)
    writer.follow(run, io.BytesIO(b"\n"))
    assert written == [run, run]
    writer.follow(run, io.BytesIO(b"\nstop\n"))
    assert written == [run] * 3


@pytest.mark.long
@pytest.mark.slow
def test_the_process_of_a_killed_run_leaves_its_report(tmp_path):
    run = rl_run(tmp_path / "a", finished=False)
    process = writer._start(run)
    process.stdin.close()
    process.wait(60)
    assert (run / "report.html").is_file() and (run / "curves.png").is_file()
    assert not list(run.glob(".*tmp*"))


def test_a_process_that_does_not_end_is_killed_and_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_STOP_SECONDS", 0.01)
    busy = writer.ReportWriter(tmp_path, pytest.fail)
    busy._process = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE)
    process = busy._process
    busy.close()
    assert process.returncode == -signal.SIGKILL


def test_a_report_that_fails_stops_nothing(tmp_path, monkeypatch, capsys):
    def broken(folder):
        raise OSError("disk full")

    monkeypatch.setattr("runtime.report.page.write_report", broken)
    with Monitor(tmp_path) as monitor:
        monitor.step(1, 1, {"loss": 1.0})
    assert "report.html was not written: OSError: disk full" in capsys.readouterr().err


def test_keys_that_differ_from_the_recipe_are_kept(tmp_path):
    config = load_config(["config=configs/rl_tiny.yaml", "training.eps=0.3", "experiment.project=x"], command="rl")
    about(config, "rl").write(tmp_path)
    found = About.read(tmp_path)
    assert (found.command, found.recipe, found.changed) == ("rl", "configs/rl_tiny.yaml", {"training.eps": (0.2, 0.3)})


def test_an_evaluation_has_tables_and_no_curves_of_one_point(tmp_path):
    figures = {"accuracy": 0.5, "tokens_per_forward": 2.0}
    (tmp_path / "results.json").write_text(json.dumps({"greedy": figures}))
    lines(tmp_path / "metrics.jsonl", [{"step": 0} | {f"eval/greedy/{key}": value for key, value in figures.items()}])
    data = data_of(build_page([read_run(tmp_path)]))
    assert data["charts"] == [] and data["results"]["rows"] == [["greedy", 0.5, 2.0]]


def test_a_run_resumed_by_its_own_config_yaml_keeps_its_recipe(tmp_path):
    typed = ["config=configs/rl_tiny.yaml", "training.eps=0.3", "experiment.project=x"]
    config = load_config(typed, command="rl")
    about(config, "rl").write(tmp_path)
    run_config.write(tmp_path / "config.yaml", run_config.Settings(resolved(config), "rl"))
    again = load_config([f"config={tmp_path / 'config.yaml'}", "training.beta=0.5"], command="rl")
    for _ in range(2):  # the second time from what the first wrote
        found = about(again, "rl")
        assert found.recipe == "configs/rl_tiny.yaml"
        assert dict(found.changed) == {"training.eps": (0.2, 0.3), "training.beta": (0.0, 0.5)}
        found.write(tmp_path)


def test_secrets_are_not_in_the_recipe_s_differences(tmp_path, monkeypatch):
    config = load_config(
        ["config=configs/rl_tiny.yaml", "judge.api=http://me:hunter2@host/v1", "judge.model=x"], command="rl"
    )
    about(config, "rl").write(tmp_path)
    text = (tmp_path / "report.json").read_text()
    assert "judge.api" in text and "hunter2" not in text


def test_two_runs_are_compared_curve_by_curve_key_by_key_and_task_by_task(run, tmp_path, capsys):
    other = rl_run(tmp_path / "b", "rl_tiny-fast", better=0.15, seed=2, rate=2e-4)
    page = tmp_path / "comparison.html"
    assert main([str(run), str(other), "-o", str(page)]) == 0
    data = data_of(page.read_text())
    assert [curve["label"] for curve in chart(data, "reward")["curves"]] == ["rl_tiny-1", "rl_tiny-fast"]
    assert ["optimizer.params.learning_rate", "0.0001", "0.0002"] in data["settings"]["changed"]
    assert not any(row[0] == "experiment.project" for row in data["settings"]["changed"])
    greedy = data["comparison"][0]
    assert greedy["entry"] == "dynamic-b4-greedy" and greedy["steps"] == [60, 60]
    assert greedy["pair"]["tasks"] == 128 and greedy["pair"]["low"] > 0 and greedy["pair"]["p"] < 0.01


def test_held_out_losses_of_two_runs_stand_side_by_side(run):
    def fine_tuned(**losses):
        rows = [{"step": 10 * i, "validation/loss": loss} for i, loss in enumerate(losses["loss"])]
        return replace(read_run(run), results={}, rows=rows + [{"step": 40, **losses.get("more", {})}])

    first = fine_tuned(loss=[2.0, 1.0, 1.5], more={"validation/nll(a)": 0.5})
    data = data_of(build_page([first, fine_tuned(loss=[2.0, 1.25]), fine_tuned(loss=[])]))
    assert data["comparison"] is None
    (row,) = data["losses"]
    assert row["figure"] == "loss" and row["names"] == data["names"][:2]
    assert (row["steps"], row["last"], row["lowest"]) == ([20, 10], [1.5, 1.25], [1.0, 1.25])


def test_runs_without_evaluations_have_no_section_that_compares_them(run):
    plain = replace(read_run(run), results={}, rows=[])
    assert data_of(build_page([plain, plain]))["comparison"] is None


def test_runs_of_one_name_are_told_apart_by_their_folders(run):
    names = data_of(build_page([read_run(run), read_run(run)]))["names"]
    assert names == [str(run), str(run)]


def test_a_report_links_its_samples_into_the_trace_page(run, capsys):
    assert main([str(run)]) == 0
    data = data_of((run / "report.html").read_text())
    first = data["samples"][0]
    assert first["trace"].startswith("trace.html#group=")
    group, sample = (int(part.split("=")[1]) for part in first["trace"].split("#")[1].split("&"))
    traces = data_of((run / "trace.html").read_text())
    assert traces["groups"][group]["title"] == f"RL step {first['step']} · {first['task']}"
    assert len(traces["groups"][group]["samples"]) > sample


# Values by hand: C(8,0)+C(8,1)+C(8,2) = 37 of 256, twice.
@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(0, 0, 1.0), (6, 2, 2 * 37 / 256), (5, 5, 1.0), (10, 0, 2 / 1024), (900, 600, 9.7e-15)]
)
def test_mcnemar_is_the_exact_two_sided_binomial(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p, rel=0.02)


def test_paired_differences_have_the_error_of_the_pairs():
    first = {f"t{i}": [float(i % 2)] for i in range(100)}
    second = {f"t{i}": [1.0 if i < 10 else float(i % 2)] for i in range(100)}
    found = paired(first, second)
    assert (found.first, found.second, found.gained, found.lost) == (0.5, 0.55, 5, 0)
    assert found.difference == pytest.approx(0.05)
    assert found.stderr == pytest.approx(math.sqrt(0.05 * 0.95 / 99), rel=1e-6)
    assert found.low == pytest.approx(0.01, abs=0.0101) and found.high == pytest.approx(0.1, abs=0.0101)
    assert found.p == pytest.approx(2 / 32)


def test_pairs_without_a_reward_are_left_out():
    assert paired({"a": [1.0, None], "b": [None]}, {"a": [0.0, 1.0], "b": [1.0], "c": [1.0]}).tasks == 1
    assert paired({"a": [None]}, {"a": [1.0]}) is None


def test_panels_of_metrics_that_are_not_there_are_not_drawn():
    assert [chart["title"] for chart in panels_of([{"nll": ([1], [2.0])}], ["x"])] == ["loss a token"]


@pytest.mark.slow
def test_a_step_pays_little_for_the_report(tmp_path, monkeypatch):
    """Processor time of the run itself, with a report at every second step."""
    monkeypatch.setattr(writer, "EVERY_SECONDS", 0.02)
    report = writer.ReportWriter(rl_run(tmp_path / "a"), print)
    costs = []
    for _ in range(40):
        time.sleep(0.01)
        began = time.process_time()
        report.soon()
        costs.append(time.process_time() - began)
    report.close()
    assert sorted(costs)[-2] < 0.002  # all but the start of the process, which is paid once
    assert max(costs) < 0.05


def test_the_console_command_explains_itself():
    shown = subprocess.run([sys.executable, "sample/get_report.py", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "several: comparison.html" in " ".join(shown.stdout.split())


def test_figures_of_sources_are_curves_beside_that_of_all():
    run = {"reward/mean": ([1], [0.5]), "reward/mean(code)": ([1], [0.25]), "accuracy(code)": ([1], [0.0])}
    charts = panels_of([run], ["x"])
    assert [[curve["label"] for curve in chart["curves"]] for chart in charts] == [["all", "code"], ["code"]]
