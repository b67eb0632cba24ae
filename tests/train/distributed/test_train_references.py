"""A frozen model beside the trained one, a teacher or DPO's reference: one result, whatever the number of ranks and the
engine."""

import importlib.util

import pytest
import rank_work
from end_to_end import RL, SFT, Workshop, read_jsonl, text_checkpoint, write_json
from rank_jobs import run_ranks
from test_train_ranks import SMOOTH, assert_same

from models import load_model

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
ENGINES = ["", pytest.param("1_node_2_cpus_fsdp2", marks=pytest.mark.long)]
ENGINES += [pytest.param("1_node_2_cpus_deepspeed_zero3", marks=[needs_deepspeed, pytest.mark.long])]
ROWS = [{"prompt": f"{i}=", "chosen": f"{i}{i}", "rejected": "9" * (1 + i % 4) + "0"} for i in range(7)]


def one_and_two(tmp_path, kind, shop, text, engine, *arguments, reward=None):
    """Metrics and weights of the same run on one rank and on two under an engine, which must be alike; those of one."""
    found = []
    for world in (1, 2):
        shared = [f"experiment.deepspeed_file={engine}"] if engine and world > 1 else []
        more = {"reward": reward} if reward else {}
        typed = shop.arguments(text, *SMOOTH, *arguments, *shared, f"experiment.project=on-{world}", **more)
        got = run_ranks(tmp_path / "job", world, rank_work.whole_run, kind, typed)
        assert not any(isinstance(result, BaseException) for result in got), got
        folder = shop.runs / f"on-{world}"
        rows = read_jsonl(folder / "metrics.jsonl")
        found.append((rows, dict(load_model(folder / "ckpt" / "optimized").state_dict())))
    assert_same(found[1], found[0])
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_policy_distilled_from_a_teacher(tmp_path, model_folder, engine):
    """All rewards are equal: whatever moves the weights comes from the teacher."""
    shop, teacher = Workshop(tmp_path, model_folder), text_checkpoint(tmp_path / "teacher", num_hidden_layers=3)
    typed = ["training.objective=distill", f"model.reference_model={teacher}", "training.rows_per_update=8"]
    typed += ["rollout.num_task_per_step=5", "evaluation.eval_dataset=null", "experiment.total_step=1"]
    rows, weights = one_and_two(tmp_path, "rl", shop, RL, engine, *typed, reward="always_one")
    assert rows[0]["kl"] > 0.001 and rows[0]["updates"] >= 2
    first = load_model(model_folder).state_dict()
    assert max(float((weights[name] - first[name]).abs().max()) for name in first) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_pairs_against_a_reference(tmp_path, model_folder, engine):
    """6 pairs in updates of 4, and one held out: the second update has two pairs, on two ranks."""
    shop = Workshop(tmp_path, model_folder)
    pairs = write_json(tmp_path / "preferences.json", ROWS)
    typed = ["training.sft_objective=dpo", "training.method=elbo", "training.max_steps=3"]
    typed += ["training.rows_per_update=4", f"dataset.optimization_data={pairs}", "optimizer.params.learning_rate=1e-3"]
    typed += ["dataset.validation_split=0.2", "experiment.eval_every=2"]
    rows, _ = one_and_two(tmp_path, "sft", shop, SFT, engine, *typed)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5) and losses[-1] < losses[0]
