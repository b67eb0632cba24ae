"""benchmarks/study.py: what it plans, what it does not run again, what its tables say. Its runs are stood in for."""

import json
import sys

import pytest

from benchmarks import study
from benchmarks.study_steps import runs as study_runs
from benchmarks.study_steps.compare import critical_t, holm, paired, two_sided_p
from benchmarks.study_steps.variants import TASKS, VARIANTS
from configs import load_config

GAIN = {"gspo": 0.05, "coupled": 0.04, "elbo": 0.03, "gdsd": 0.02, "bgpo": 0.01}


@pytest.fixture
def commands(monkeypatch):
    """Stands in for the commands of runs: writes the files that a run leaves; {name: arguments} of each call."""
    called = {}

    def call(self, script, recipe, arguments, name):
        called[name] = [f"config=configs/{recipe}.yaml", *arguments]
        folder = self.output / name
        (folder / "ckpt" / "optimized").mkdir(parents=True, exist_ok=True)
        (folder / "ckpt" / "optimized" / "config.json").write_text("{}")
        if script == "rl.py":
            _, variant, _, questions, steps, seed = name.split("-")
            figures = {"stderr": 0.02, "tokens_per_forward": 2.0}
            after = 0.6 + GAIN.get(variant, -0.01) + 0.01 * int(seed) + 0.001 * int(seed) * (variant == "coupled")
            evaluations = {"0": {"x": {"accuracy": 0.4, **figures}}, steps[1:]: {"x": {"accuracy": after, **figures}}}
            (folder / "evaluations.json").write_text(json.dumps(evaluations))
            tokens = int(questions[1:]) * (5 if variant == "coupled" else 10)
            (folder / "metrics.jsonl").write_text(json.dumps({"updates": 2.0, "packed_tokens": tokens}) + "\n")
            (self.output / f"{name}.cpu").write_text("10.0\n26.0\n")

    monkeypatch.setattr(study_runs.Runner, "_call", call)
    return called


def run_study(monkeypatch, tmp_path, *arguments):
    where = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "study.jsonl"), "--tasks", "addition"]
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments, *where])
    study.main()


def test_a_finished_run_is_read_and_a_run_without_a_line_is_run(commands, monkeypatch, tmp_path, capsys):
    chosen = ["stage1", "--variants", "trace", "coupled", "--seeds", "1", "--steps", "3"]
    run_study(monkeypatch, tmp_path, *chosen)
    assert list(commands) == ["sft_tiny_addition-b8-1", "addition-trace-b8-q48-s3-1", "addition-coupled-b8-q48-s3-1"]
    lines = (tmp_path / "study.jsonl").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["cpu_seconds"] == 36.0
    (tmp_path / "study.jsonl").write_text(lines[0] + "\n")
    commands.clear()
    run_study(monkeypatch, tmp_path, *chosen)
    assert list(commands) == ["addition-coupled-b8-q48-s3-1"]
    assert (tmp_path / "study.jsonl").read_text().splitlines() == lines
    assert "| coupled, one pair of masks | 1 | 2 | 0.000 | 0.400 | 0.651 | +0.051 (1) |" in capsys.readouterr().out


def test_the_figures_of_each_seed_stand_in_the_order_of_the_seeds(commands, monkeypatch, tmp_path, capsys):
    for seed in ("2", "1"):
        run_study(monkeypatch, tmp_path, "stage1", "--variants", "trace", "--seeds", seed, "--steps", "3")
    assert "| TraceRL | 1 2 | 2 | 0.000 | 0.400 (0.400, 0.400) | 0.605 (0.600, 0.610) |" in capsys.readouterr().out


def test_stage_two_takes_the_five_best_on_new_seeds_at_equal_tokens(commands, monkeypatch, tmp_path, capsys):
    with pytest.raises(ValueError, match="stage 2 of addition needs stage 1"):
        run_study(monkeypatch, tmp_path, "stage2")
    run_study(monkeypatch, tmp_path, "stage1", "--variants", "trace", "kl", "shrink", *GAIN)
    commands.clear()
    run_study(monkeypatch, tmp_path, "stage2")
    named = [name.split("-")[1:] for name in commands if name.startswith("addition")]
    assert {variant for variant, *_ in named} == {"trace", *GAIN} and len(named) == 36
    assert {questions for variant, _, questions, *_ in named if variant == "coupled"} == {"q96"}
    assert {questions for variant, _, questions, *_ in named if variant != "coupled"} == {"q48"}
    assert {int(seed) for *_, seed in named} == set(study.NEW_SEEDS)
    table = capsys.readouterr().out.partition("addition, stage 2")[2]
    (row,) = (line for line in table.splitlines() if line.startswith("| coupled"))
    assert row.endswith("| 3 4 5 6 7 8 | 2 | 0.000 | 0.400 | 0.701 | +0.056 +- 0.002 | 2.00 -> 2.00 | 0.000 | +0% |"), (
        row
    )


def test_a_variant_that_was_tracerl_itself_is_not_run_again(commands, monkeypatch, tmp_path):
    run_study(monkeypatch, tmp_path, "stage1", "--variants", "trace", "rank", "gspo")
    commands.clear()
    run_study(monkeypatch, tmp_path, "stage2")
    assert {name.split("-")[1] for name in commands if name.startswith("addition")} == {"trace", "gspo"}


def test_blocks_are_trained_at_their_size(commands, monkeypatch, tmp_path):
    run_study(monkeypatch, tmp_path, "blocks", "--seeds", "2")
    assert "training.block_size=16" in commands["sft_tiny_addition-b16-2"]
    assert not any("block_size" in argument for argument in commands["sft_tiny_addition-b8-2"])
    name = f"addition-lightning-b16-q48-s{TASKS['addition'].steps}-2"
    assert {"rollout.block_size=16", "evaluation.steps_per_block=16"} <= set(commands[name])
    assert commands[name][-1] == "reward.min_speed_spread=0.0"  # after the variant's own


def test_a_block_that_holds_the_answer_has_a_longer_fine_tuning(commands, tmp_path):
    runner = study_runs.Runner(tmp_path / "runs", tmp_path / "none.jsonl")
    for size in (8, 16, 32):
        runner._prepare(TASKS["sort"], study_runs.Run("sort", "trace", 1, size, 60, 48))
    longer = {name: "training.num_train_epochs=66" in arguments for name, arguments in commands.items()}
    assert longer == {"sft_tiny-b8-1": False, "sft_tiny-b16-1": True, "sft_tiny-b32-1": True}


def test_edits_are_compared_with_none_from_the_same_first_model(commands, monkeypatch, tmp_path, capsys):
    where = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "study.jsonl")]
    monkeypatch.setattr(sys, "argv", ["study.py", "edits", "--seeds", "1", "2", *where])
    study.main()
    assert sum(name.startswith("sft_tiny_edit") for name in commands) == 2 and len(commands) == 10
    (without,) = (
        arguments for name, arguments in commands.items() if name.startswith("edits-no_edits-") and name.endswith("-1")
    )
    config = load_config(without)
    assert config.rollout.edit_threshold is None and config.evaluation.edit_threshold is None
    assert "| TraceRL without edits | 1 2 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["study.py", "stage1", "--seeds", "3", *where])
    with pytest.raises(SystemExit):
        study.main()


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_configuration(variant, tmp_path):
    for name, task in TASKS.items():
        if variant in study.variants_of(name):
            run = study_runs.Run(name, variant, 1, task.block_size, task.steps, task.questions)
            runner = study_runs.Runner(tmp_path, tmp_path / "none.jsonl")
            arguments = runner._arguments(task, run, tmp_path / "model")
            load_config([f"config=configs/{task.recipe}.yaml", *arguments])


@pytest.mark.long
@pytest.mark.slow
def test_a_tiny_cut_runs_for_real(monkeypatch, tmp_path, capsys):
    few = (
        "evaluation.max_tasks=4",
        "rollout.num_response_per_task=4",
        "training.min_accuracy=0.0",
        "model.random_init=true",
    )
    monkeypatch.setattr(study_runs, "COMMON", (*study_runs.COMMON, *few))
    monkeypatch.setattr(
        study_runs.Runner, "_prepare", lambda runner, task, run: study_runs.ROOT / "configs" / "tiny_model"
    )
    run_study(monkeypatch, tmp_path, "stage1", "--variants", "trace", "value", "--seeds", "1", "--steps", "2")
    trace, value = map(json.loads, (tmp_path / "study.jsonl").read_text().splitlines())
    assert (trace["run"]["variant"], value["run"]["variant"]) == ("trace", "value")
    assert trace["before"] == value["before"] and value["cpu_seconds"] > 1
    run_study(monkeypatch, tmp_path, "report", "--steps", "2")
    assert "| value model | 1 |" in capsys.readouterr().out


def test_two_sided_p_and_its_inverse_are_those_of_tables():
    assert two_sided_p(2.571, 5) == pytest.approx(0.05, abs=1e-4)
    assert [critical_t(n) for n in (1, 2, 5, 30)] == pytest.approx([12.706, 4.303, 2.571, 2.042], abs=1e-3)


def test_differences_are_paired_by_the_seed():
    gap = paired({1: 0.5, 2: 0.7, 3: 0.6, 9: 0.0}, {1: 0.4, 2: 0.5, 3: 0.3, 8: 1.0})
    assert (gap.pairs, gap.mean) == (3, pytest.approx(0.2))
    assert gap.half_width == pytest.approx(4.3027 * 0.1 / 3**0.5, abs=1e-4) and gap.p == pytest.approx(0.0742, abs=1e-3)
    assert paired({1: 0.5}, {2: 0.5}) is None and paired({1: 0.5}, {1: 0.4}).half_width is None


def test_holm_multiplies_by_what_is_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == pytest.approx([1.0, 1.0]) and holm([]) == []
