"""An objective, an advantage and a masking method in files of the user's, outside the repository, in whole runs."""

import numpy as np
import pytest
import rank_work
import torch
from end_to_end import RL, SFT, Workshop, read_jsonl
from rank_jobs import run_ranks
from trainees import plain_log_probs

from configs import load_config
from models import load_model
from sample import Rollout
from train import rl, sft
from train.setup import models as session

GSPO = '''
import torch
from train.algorithm.objectives import objective, sum_by


@objective(whole_responses=True, defaults={"low": 0.2, "high": 0.2})
def gspo(batch, params):
    """GSPO (arXiv:2507.18071): one ratio a response, the geometric mean of its tokens'."""
    tokens = sum_by(batch.response, torch.ones_like(batch.logp))
    ratio = (sum_by(batch.response, batch.logp - batch.logp_old) / tokens).exp()
    bounded = ratio.clamp(1 - params["low"], 1 + params["high"])
    surrogate = torch.minimum(ratio * batch.advantage, bounded * batch.advantage)
    held = (ratio * batch.advantage > bounded * batch.advantage).sum()
    return -(batch.weight * surrogate).sum(), {"held": held}
'''
RANKS = '''
import numpy as np


def by_rank(reward_G, power=1.0):
    """Places in the order of rewards, from -1 to 1."""
    place = np.argsort(np.argsort(reward_G)) / (len(reward_G) - 1)
    return np.sign(2 * place - 1) * np.abs(2 * place - 1) ** power
'''
LAST = '''
import numpy as np


def all_at_once(canvas, training, rng, weight=1.0):
    """Every trained position of a block masked at once."""
    units = np.unique(canvas.unit_C[canvas.trained_C])
    return [
        canvas.masked(int(unit), 0, canvas.unit_C == unit, canvas.trained_C & (canvas.unit_C == unit), weight)
        for unit in units
    ]
'''
REWARD = """
def spread(prompts, completions, *, completion_ids, **columns):
    return [float(sum(ids) % 7) for ids in completion_ids]
"""
QUICK = ["experiment.eval_first=false", "evaluation.eval_dataset=''", "rollout.num_task_per_step=2"]
LOW, HIGH = 0.02, 0.03


@pytest.fixture
def outside(tmp_path_factory):
    """A folder that is neither the repository nor where the run lies."""
    folder = tmp_path_factory.mktemp("outside")
    for name, text in (("my_objective", GSPO), ("my_advantage", RANKS), ("my_method", LAST), ("my_reward", REWARD)):
        (folder / f"{name}.py").write_text(text)
    return folder


def run(shop, *arguments):
    rl.run(load_config(shop.arguments(RL, *QUICK, *arguments)))
    return [row for row in read_jsonl(shop.runs / "rl" / "metrics.jsonl") if "loss" in row]


def gspo_arguments(outside, *arguments):
    return [
        f"training.objective={outside}/my_objective.py:gspo",
        f"training.objective_params.low={LOW}",
        f"training.objective_params.high={HIGH}",
        *("training.num_train_epochs=2", "training.batch_size_lm=100000", "training.max_grad_norm=0"),
        *("optimizer.params.epsilon=1e-4", "optimizer.params.learning_rate=2e-3"),
        f"reward.function={outside}/my_reward.py:spread",
        *arguments,
    ]


def plain_gspo(model, rollouts, advantages):
    """(loss, share of tokens whose response is held by the clip) with a loop over responses, under plain attention."""
    terms, held, tokens = [], 0, 0
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        found, _ = plain_log_probs(model, rollout, 4)
        gaps = [logp - rollout.canvas_logprobs[place] for place, logp in found.items()]
        ratio = torch.exp(sum(gaps) / len(gaps))
        bounded = torch.clamp(ratio, 1 - LOW, 1 + HIGH)
        terms.append(-len(gaps) * torch.minimum(ratio * advantage, bounded * advantage))
        held, tokens = held + len(gaps) * bool(ratio * advantage > bounded * advantage), tokens + len(gaps)
    return sum(terms) / (len(rollouts) * 10), held / tokens


@pytest.mark.slow
def test_gspo_of_the_users_own_trains_as_written_down_a_second_time(shop, outside):
    """Two steps of two updates each: losses, clipped shares and weights are those of a loop over responses."""
    rows = run(shop, *gspo_arguments(outside))
    model = load_model(shop.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, eps=1e-4, weight_decay=0.0)
    stored, shares = read_jsonl(shop.runs / "rl" / "rollouts.jsonl"), []
    for step, row in enumerate(rows, 1):
        given = [one for one in stored if one["step"] == step and one["advantage"] is not None]
        losses = []
        for _ in range(2):
            loss, held = plain_gspo(model, list(map(Rollout.from_dict, given)), [one["advantage"] for one in given])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            shares.append(held)
        assert row["loss"] == pytest.approx(np.mean(losses), abs=1e-5) and row["updates"] == 2
        assert row["objective/held"] == pytest.approx(np.mean(shares[-2:]), abs=1e-6)
        trained = dict(load_model(shop.runs / "rl" / "ckpt" / f"step-{step:06d}").named_parameters())
        for name, weight in model.named_parameters():
            assert float((weight - trained[name]).detach().abs().max()) < 2e-5, name
    assert len(rows) == 2 and shares[0] == shares[2] == 0 < min(shares[1], shares[3]) and shares[1] < 1
    assert "kl" not in rows[0] and "clip_ratio" not in rows[0]


@pytest.mark.slow
def test_an_advantage_of_the_users_own(shop, outside):
    arguments = [f"training.advantage={outside}/my_advantage.py:by_rank", "training.advantage_params.power=2"]
    run(shop, *arguments, "experiment.total_step=1")
    stored = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    for first in range(0, len(stored), 4):
        group = stored[first : first + 4]
        place = np.argsort(np.argsort([one["reward"] for one in group])) / 3
        want = np.sign(2 * place - 1) * (2 * place - 1) ** 2
        assert [one["advantage"] for one in group] in (want.tolist(), [None] * 4)
    assert any(one["advantage"] for one in stored)


@pytest.mark.slow
def test_a_masking_method_of_the_users_own(shop, outside):
    """One round a response, whatever order the sampler took: no mismatch to measure, and the old log-probabilities are
    recomputed."""
    arguments = [f"training.method={outside}/my_method.py:all_at_once", "training.method_params.weight=0.5"]
    (row,) = run(shop, *arguments, "experiment.total_step=1", "training.batch_size_lm=100000")
    assert row["ratio"] == pytest.approx(1.0) and "mismatch_kl" not in row and row["updates"] == 1
    stored = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    trained = [one for one in stored if one["advantage"] is not None]
    assert row["rows"] == len(trained) < sum(one["num_steps"] for one in trained)
    assert row["trained_tokens"] == sum(one["num_response_tokens"] for one in trained)
    summary = sft.run(load_config(shop.arguments(SFT, *arguments, "training.num_train_epochs=1")))
    assert summary["steps"] == 2


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("training.objective=my_objective.py:gpso", "training.objective: my_objective.py has no 'gpso'; nearest: gspo"),
        ("training.objective_params.lo=0.1", "training.objective_params.lo is unknown: its parameters are eps, "),
        ("training.advantage=my_advantage.py:by_rnk", "training.advantage: my_advantage.py has no 'by_rnk'"),
        ("training.method=my_method.py", "training.method must look like path/to/file.py:name"),
    ],
)
def test_a_bad_door_ends_a_run_before_a_model_is_loaded(shop, outside, monkeypatch, word, says):
    def refuse(*arguments, **named):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(session, "load_model", refuse)
    monkeypatch.chdir(outside)
    with pytest.raises(ValueError, match=says):
        run(shop, word)


@pytest.mark.slow
def test_an_objective_that_fails_in_training_names_itself_and_the_line(shop, outside):
    """It works on the made-up tokens of the check."""
    (outside / "fails.py").write_text(
        "def late(batch, params):\n"
        "    if len(batch.logp) != 20 and len(batch.logp) != 10:\n"
        "        raise RuntimeError('sizes do not match\\nand so on')\n"
        "    return -(batch.weight * batch.advantage * batch.logp).sum(), {}\n"
    )
    with pytest.raises(ValueError, match=r"fails.py:late: RuntimeError: sizes do not match \(.*fails.py line 3\)$"):
        run(shop, f"training.objective={outside}/fails.py:late")


@pytest.mark.long
def test_a_run_of_gspo_on_two_ranks_is_that_on_one(tmp_path, model_folder, outside):
    results = []
    for world in (1, 2):
        (tmp_path / str(world)).mkdir()
        shop = Workshop(tmp_path / str(world), model_folder)
        arguments = shop.arguments(
            RL, *QUICK, *gspo_arguments(outside, "training.rows_per_update=100000", "model.device=cpu")
        )
        run_ranks(tmp_path / f"job{world}", world, rank_work.whole_run, "rl", arguments)
        rows = [row for row in read_jsonl(shop.runs / "rl" / "metrics.jsonl") if "loss" in row]
        results.append((rows, dict(load_model(shop.runs / "rl" / "ckpt" / "optimized").named_parameters())))
    (one, weights), (two, others) = results
    for mine, theirs in zip(one, two, strict=True):
        for name in ("loss", "grad_norm", "objective/held", "trained_tokens", "rows"):
            assert theirs[name] == pytest.approx(mine[name], abs=1e-5), name
    for name, weight in weights.items():
        assert float((weight - others[name]).detach().abs().max()) < 1e-5, name
