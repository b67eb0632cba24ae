"""RL from Python: a checkpoint, tasks and a reward, in a few lines."""

import json
import linecache
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from train import start
from train.start import rl

TASKS = [{"question": f"{i}=", "ground_truth_answer": str(i)} for i in range(4)]
SMALL = {
    "rollout": {"num_task_per_step": 2, "num_response_per_task": 4, "max_new_tokens": 8, "threshold": 0.4},
    "training": {"mixed_precision": "no", "batch_size_lm": 8},
    "dataset": {"template": "plain"},
}


@pytest.fixture
def run(monkeypatch):
    """What `rl` hands to the loop."""
    configs = []
    monkeypatch.setattr(start.loop, "run", lambda config: configs.append(config) or {"loss": 0.5})
    return configs


def test_tasks_and_a_reward_become_a_configuration(run, model_folder, tmp_path):
    def digits(prompts, completions, **columns):
        return [float(len(re.findall("[0-9]", text))) for text in completions]

    trained = rl(model_folder, TASKS, digits, experiment={"output_dir": str(tmp_path), "total_step": 3}, **SMALL)
    (config,) = run
    assert (config.experiment.total_step, config.rollout.max_new_tokens, config.dataset.data_type) == (3, 8, "general")
    assert json.loads(Path(config.dataset.train_dataset).read_text()) == TASKS
    path, name = config.reward.function.rsplit(":", 1)
    space = {}
    source = Path(path).read_text()
    exec(source, space)
    assert space[name]([], ["a12"]) == [2.0] and "import re as re" in source
    assert trained.final == {"loss": 0.5} and trained.model == tmp_path / "run" / "ckpt" / "optimized"


def test_inputs_of_an_earlier_call_stay(run, model_folder, tmp_path):
    def one(prompts, completions, **columns):
        return [1.0 for _ in completions]

    def two(prompts, completions, **columns):
        return [2.0 for _ in completions]

    where = {"experiment": {"output_dir": str(tmp_path)}}
    for tasks, reward in ((TASKS, one), (TASKS[:2], two), (TASKS, one)):
        rl(model_folder, tasks, reward, **where)
    files = [(config.dataset.train_dataset, config.reward.function) for config in run]
    assert files[0] == files[2] and files[0][0] != files[1][0] and files[0][1] != files[1][1]
    assert [len(json.loads(Path(tasks).read_text())) for tasks, _ in files] == [4, 2, 4]
    assert "return [1.0" in Path(files[0][1].rsplit(":", 1)[0]).read_text()


def test_annotations_need_nothing_from_around_a_function(run, model_folder, tmp_path):
    def typed(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
        return [1.0 for _ in completions]

    rl(model_folder, TASKS, typed, experiment={"output_dir": str(tmp_path)})
    path, name = run[0].reward.function.rsplit(":", 1)
    space = {}
    exec(compile(Path(path).read_text(), path, "exec"), space)
    assert space[name]([], ["a"]) == [1.0]


def test_names_paths_and_functions_of_modules_are_taken_as_they_are(run, model_folder):
    from data.tiny import tiny_reward

    rl(str(model_folder), "MATH_train", tiny_reward)
    rl(str(model_folder), "MATH_train", "data/tiny.py:tiny_reward", dataset={"data_type": "math"})
    rl(str(model_folder), "MATH_train")
    assert [config.dataset.train_dataset for config in run] == ["MATH_train"] * 3
    assert run[0].reward.function.endswith("data/tiny.py:tiny_reward") and run[2].reward.function is None
    assert [config.dataset.data_type for config in run] == ["general", "math", "math"]


def test_a_function_that_cannot_be_taken_elsewhere_is_refused(run, model_folder, tmp_path):
    scale = 2.0

    def scaled(prompts, completions, **columns):
        return [scale * math.pi for _ in completions]

    where = {"experiment": {"output_dir": str(tmp_path)}}
    with pytest.raises(ValueError, match="uses scale from around it"):
        rl(model_folder, TASKS, scaled, **where)
    for nameless in (lambda prompts, completions, **columns: [0.0], len):
        with pytest.raises(ValueError, match="give a function that has a name"):
            rl(model_folder, TASKS, nameless, **where)
    with pytest.raises(ValueError, match="Did you mean"):
        rl(model_folder, TASKS, rollout={"temprature": 1})
    with pytest.raises(ValueError, match="reward=.*: a section is a mapping.*go first, unnamed"):
        rl(model_folder, TASKS, reward=scaled)
    assert not run


def test_the_lines_in_the_readme_train_a_model(run, model_folder, tmp_path, monkeypatch):
    text = (Path(start.__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"(?:    [^\n]*\n|\n)*?    from train\.start(?:    [^\n]*\n|[^\n]+\n|\n(?=    ))*", text)
    code = re.sub(r"^    ", "", code, flags=re.M).replace("/models/TraDo-4B-Instruct", str(model_folder))
    linecache.cache["<readme>"] = (len(code), None, code.splitlines(keepends=True), "<readme>")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "<readme>", "exec"), {"__name__": "__main__"})
    assert run[0].experiment.total_step == 20 and re.search(r"/reward-\w+\.py:short$", run[0].reward.function)


@pytest.mark.slow
def test_a_whole_run_writes_a_model_that_loads(model_folder, tmp_path):
    def digits(prompts, completions, **columns):
        return [sum(c.isdigit() for c in text) / 8 for text in completions]

    where = {"output_dir": str(tmp_path), "total_step": 1}
    trained = rl(model_folder, TASKS, digits, experiment=where, reward={"workers": 1}, **SMALL)
    assert (trained.model / "config.json").is_file() and trained.final
