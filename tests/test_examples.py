"""examples/: they run, and the page of method is the framework's."""

import copy
import importlib.util
import json
import linecache
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from configs import load_config
from models import load_model
from sample import Sampler, SamplingConfig
from train import rl
from train.algorithm.advantages import centered, group_advantages
from train.distributed.accelerator import make_accelerator
from train.learner.batch import Replay
from train.learner.optimizer import OptimizerSettings
from train.learner.policy import Policy
from train.learner.updater import Updater

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def rl_loop():
    spec = importlib.util.spec_from_file_location("rl_loop", EXAMPLES / "rl_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_what_the_drawing_recipe_begins_with_is_what_it_reads(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("tiny_drawing", EXAMPLES / "tiny_drawing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    steps_of = module.steps_of
    monkeypatch.setattr(module, "steps_of", lambda weights, count, *more: steps_of(weights, 3, *more))
    monkeypatch.setattr("sys.argv", ["tiny_drawing.py", "-o", str(tmp_path / "tiny_drawing")])
    module.main()
    config = load_config(["config=configs/rl_tiny_drawing.yaml", f"experiment.output_dir={tmp_path}"], command="rl")
    rl.check(config)
    model = load_model(config.model.pretrained_model, image_tokenizer=config.model.vq_model_path)
    train, test = (json.loads((tmp_path / "tiny_drawing" / f"{name}.json").read_text()) for name in ("train", "test"))
    assert (len(train), len(test)) == (48, 16)
    assert model.drawing.codes == range(len(model.tokenizer), len(model.tokenizer) + 256)
    ids = model.drawing_prompt(train[0]["question"]).ids
    assert len(ids) == len(train[0]["question"].split()) + 4 and model.picture_codes(16) == 16


def test_the_loop_on_one_page_trains_as_the_framework_does(rl_loop):
    """The same loss and the same weights, two steps of one update each, the second of a policy that has moved."""
    sampling = SamplingConfig(max_new_tokens=10, block_size=4, temperature=1.0, threshold=0.2, seed=1)
    mine = load_model(EXAMPLES.parent / "configs" / "tiny_model", random_init_seed=0)
    theirs = copy.deepcopy(mine)
    rollouts = Sampler(mine, sampling).generate([[8, 9, 10], [12, 30]], n=4)
    credit = group_advantages([float(sum(rollout.token_ids) % 5) for rollout in rollouts], 4, advantage=centered)
    optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    updater = Updater(
        theirs, make_accelerator("no", torch.device("cpu")), OptimizerSettings(learning_rate=1e-3, beta2=0.95)
    )
    policy = Policy(updater, Replay.of(theirs, sampling.for_model(theirs), rl_loop.TRAINING))
    for step in (1, 2):
        loss = rl_loop.update(mine, optimizer, rollouts, credit)
        metrics = policy.train(policy.batch(rollouts, credit.values), step).metrics
        assert metrics["updates"] == 1 and metrics["loss"] == pytest.approx(loss, abs=1e-6)
    assert abs(loss) > 1e-3
    for (name, weight), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(weight, other, atol=1e-6), name


@pytest.mark.slow
def test_the_loop_runs_and_fits_on_a_page(rl_loop, capsys):
    (mean,) = rl_loop.main(steps=1)
    assert 0.0 < mean < 1.0 and capsys.readouterr().out.startswith(f"step  1/1  reward {mean:.3f}  loss ")
    assert len((EXAMPLES / "rl_loop.py").read_text().splitlines()) <= 100


@pytest.mark.long
def test_the_loop_learns(rl_loop):
    means = rl_loop.main()
    assert sum(means[-3:]) / 3 > means[0] + 0.15


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(capsys, monkeypatch, tmp_path):
    """Each cell's source is where inspect looks for it, as in IPython."""
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(tempfile, "mkdtemp", lambda: str(tmp_path))
    monkeypatch.chdir(EXAMPLES)
    space = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells) and len(cells) > 4
    for number, cell in enumerate(cells):
        source, name = "".join(cell["source"]), f"<cell {number}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), space)
    rewards = space["rewards"]
    assert len(rewards) == 10 and rewards[-1] > rewards[0]
    assert "mean reward of each step" in capsys.readouterr().out
