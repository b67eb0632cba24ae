"""benchmarks/gpu.py: a rehearsal of its steps on a CPU, and that no step can take the others with it."""

import json
import os
import time

import forked
import pytest
import torch
from commands import finish

from benchmarks import gpu
from benchmarks.gpu_steps.record import Figure, Setup, Step


def rehearse(out, *arguments):
    process = forked.start(["benchmarks/gpu.py", "--rehearse", "--out", out, *arguments], OMP_NUM_THREADS="1")
    status, said, err = finish(process, 200)
    assert status == 0, said + err
    return json.loads(said.splitlines()[-1])


def test_a_step_that_crashes_hangs_or_fails_costs_itself_alone(monkeypatch, tmp_path, capfd):
    def steps_of(setup):
        yield "first", 1.0, "a remark"
        yield "second", setup.ceilings["copy_gb_s"]

    def crashes(setup):
        yield "first", 2.0
        os._exit(7)

    def hangs(setup):
        yield "first", 3.0
        time.sleep(60)

    def fails(setup):
        raise RuntimeError("out of memory")
        yield

    def ceilings(setup):
        yield "copy_gb_s", 4.0

    figures = (Figure("first", "s", "1", least=1.5), Figure("second", "s"))
    made = {"whole": steps_of, "crashes": crashes, "hangs": hangs, "fails": fails, "late": steps_of}
    steps = {name: Step(name, name, 0.2, run, figures) for name, run in made.items()}
    steps["late"] = Step("late", "late", 100.0, steps_of, figures)
    steps = {"machine": Step("machine", "", 1.0, ceilings, (Figure("copy_gb_s", "GB/s"),)), **steps}
    monkeypatch.setattr(gpu, "STEPS", steps)
    args, names = gpu.parse(["--out", str(tmp_path), "--rehearse", "--only", ",".join(list(made)[:-1])])
    found = gpu.run(args, names, ["--rehearse"])
    assert [found[name].state.split(":")[0].split(" (")[0] for name in steps] == [
        *("done", "done", "its process died", "stopped after 0 s", "failed", "not asked for")
    ]
    assert [found[name].values for name in made] == [
        {"first": 1.0, "second": 4.0}, {"first": 2.0}, {"first": 3.0}, {}, {},
    ]  # fmt: skip
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept["steps"]["whole"]["remarks"] == {"first": "a remark"} and "CPU" in kept["card"]
    page = (tmp_path / "results.md").read_text()
    assert "| whole | first (s) | 1 | >= 1.5 | 1 | missed, a remark |" in page
    assert "Not measured in fails (failed: RuntimeError: out of memory): first, second." in page
    args, names = gpu.parse(["--out", str(tmp_path), "--rehearse", "--only", "late", "--deadline", "0.5"])
    found = gpu.run(args, names, ["--rehearse"])
    assert found["late"].state.startswith("no time") and found["whole"].values == {"first": 1.0, "second": 4.0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--only", "sampler"), "no step is named 'sampler'; there are machine"), ((), "torch sees no GPU here")],
)
def test_a_mistake_on_the_command_line_is_one_line(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.parse(arguments)
    assert said in capsys.readouterr().err


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "gpu.json").write_text("{")
    with pytest.raises(ValueError, match=r"gpu.json cannot be read .*another --out"):
        gpu.earlier(tmp_path)


@pytest.mark.parametrize(
    ("figure", "value", "missed"),
    [
        (Figure("a", "s", least=1.0), 0.9, True),
        (Figure("a", "s", most=1.0), 1.1, True),
        (Figure("a", "s", least=1.0, most=2.0), 1.5, False),
        (Figure("a", "s", least=1.0), float("nan"), True),
        (Figure("a", "s"), 3.0, False),
    ],
)
def test_what_is_asked_of_a_figure(figure, value, missed):
    assert figure.missed_by(value) == missed


def test_every_figure_has_one_name():
    names = [figure.name for step in gpu.STEPS.values() for figure in step.figures]
    assert len(names) == len(set(names)) and sum(step.seconds for step in gpu.STEPS.values()) + 15 <= 900


@pytest.mark.slow
def test_a_rehearsal_runs_the_steps(tmp_path):
    figures = rehearse(tmp_path, "--only", "machine,attention,choice,sampler_small,update_small,rl_step")
    assert figures["failed"] == [] and figures["rehearsal"] and figures["rl_step_rest_share"] < 1
    assert figures["4B_B1_ms"] > 0 and figures["1.7B_16k_seconds"] > 0


@pytest.mark.long
@pytest.mark.slow
def test_a_rehearsal_runs_every_step(tmp_path):
    figures = rehearse(tmp_path)
    assert figures["failed"] == []
    checks = [name for name in figures if name.startswith(("reference_", "cpu_tokens_", "graph_"))]
    assert len(checks) == 17 and all(figures[name] == 1 for name in checks)
    assert Setup(torch.device("cpu"), tiny=True).choose("real", "tiny") == "tiny"
