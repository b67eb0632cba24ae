"""RL, evaluation and the viewer of a model whose edits delete and insert tokens (LLaDA2.2)."""

import pytest
from end_to_end import EVAL, RL, Workshop, read_jsonl, text_checkpoint

from configs import load_config
from runtime.monitor import Monitor
from sample import Rollout
from sample.viewer.trace import read_traces
from serve.loading import check
from serve.settings import ServeSettings
from train import evaluation, rl

DELETE, INSERT = 38, 39
EDITS = ["rollout.edit_threshold=0.0", "rollout.max_post_steps=2"]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setattr(Monitor, "curves", lambda monitor: None)
    ids = {"delete_token_id": DELETE, "split_token_id": INSERT}
    return Workshop(tmp_path, text_checkpoint(tmp_path / "llada2", "llada2", expert_capacity=3, **ids))


@pytest.mark.slow
def test_every_deletion_and_insertion_of_a_run_is_trained_and_an_evaluation_shows_them(shop):
    rl.run(load_config(shop.arguments(RL, *EDITS, "evaluation.eval_dataset=''", "training.block_size=4")))
    rows = read_jsonl(shop.runs / "rl" / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        assert row["edits/deleted"] > 0 and row["edits/inserted"] > 0 and row["entropy"] > 0
        assert row["mismatch_kl"] < 1e-9 and row["grad_norm"] > 0
    rollouts = [Rollout.from_dict(row) for row in read_jsonl(shop.runs / "rl" / "rollouts.jsonl")]
    assert not any({DELETE, INSERT} & {*rollout.canvas_ids} for rollout in rollouts)
    assert read_traces(shop.runs / "rl" / "rollouts.jsonl", 99).groups
    shown = ["rollout.output_unmasking_history=true", "rollout.block_size=4", "rollout.top_k=0"]
    evaluation.run(load_config(shop.arguments(EVAL, *EDITS, *shown)))
    samples = read_jsonl(shop.runs / "eval" / "samples.jsonl")
    assert any(DELETE in sample["events"]["action"] for sample in samples)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["training.shrink=2"], "training.shrink=2: edits of .* delete and insert tokens.*Set training.shrink=1"),
        (["rollout.remask_threshold=0.1"], "rollout.remask_threshold=0.1: edits of this model delete and insert"),
    ],
)
def test_what_has_no_rule_where_tokens_move_is_an_error_before_a_model_is_loaded(shop, changes, said):
    (shop.model / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=said):
        rl.run(load_config(shop.arguments(RL, *EDITS, *changes)))


@pytest.mark.slow
def test_serving_refuses_remasking_beside_them_before_the_weights(shop):
    (shop.model / "model.safetensors").write_bytes(b"")
    check(ServeSettings(model=str(shop.model), edit_threshold=0.3))
    with pytest.raises(ValueError, match="remask_threshold=0.1: edits of this model delete and insert"):
        check(ServeSettings(model=str(shop.model), edit_threshold=0.3, remask_threshold=0.1))
