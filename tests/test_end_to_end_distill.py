"""Trace distillation as one command: eval.py's responses are sampled first, then the fine-tuning trains on them."""

import pytest
from end_to_end import EVAL, SFT, read_jsonl

from configs import load_config
from train import sft

DISTILL = ("training.method=trace", "training.shrink=2", "training.num_train_epochs=2", "dataset.traces_per_task=1")


def typed(shop, *arguments):
    """The fine-tuning on traces of the model itself."""
    shop.arguments(EVAL)
    first = shop.folder / "traces.yaml"
    lines = f"model: {{pretrained_model: {shop.model}}}\n" + EVAL.replace("project: eval", "project: traces").replace(
        "template: plain}", f"template: plain, eval_dataset: {shop.tasks}}}"
    ).replace("{workers: 1}", f"{{workers: 1, function: '{shop.reward}:always_one'}}")
    first.write_text(lines)
    data = [f"dataset.sample_with={first}", f"dataset.optimization_data={shop.runs}/traces/samples.jsonl"]
    return load_config(shop.arguments(SFT, *DISTILL, *data, *arguments), command="sft")


@pytest.mark.slow
def test_traces_are_sampled_once_and_the_fastest_of_each_task_trained(shop, capsys):
    assert sft.run(typed(shop, "dry_run=true")) is None
    assert "samples.jsonl is absent" in capsys.readouterr().out and not shop.runs.exists()
    final = sft.run(typed(shop))
    rows = read_jsonl(shop.runs / "traces" / "samples.jsonl")
    assert len(rows) == 24 and {len(row["canvas_ids"]) - len(row["token_ids"]) for row in rows} != {0}
    metrics = read_jsonl(shop.runs / "sft" / "metrics.jsonl")
    best = {}
    for row in rows:
        if row["task"] not in best or row["tokens"] / row["num_steps"] > best[row["task"]][0]:
            best[row["task"]] = row["tokens"] / row["num_steps"], row["tokens"]
    assert sum(row["trained_tokens"] for row in metrics) == 2 * sum(tokens for _, tokens in best.values())
    assert final["steps"] == 6 and "eval traces" in capsys.readouterr().out
    sft.run(typed(shop, "experiment.project=again"))
    assert "eval traces" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="6 of 6 examples are no responses of a model"):
        sft.run(typed(shop, f"dataset.optimization_data={shop.pairs}", "experiment.project=pairs"))


@pytest.mark.slow
def test_what_cannot_sample_the_data_is_said_before(shop):
    with pytest.raises(ValueError, match=r"sample_with: nowhere.yaml does not exist"):
        sft.run(typed(shop, "dataset.sample_with=nowhere.yaml"))
    with pytest.raises(ValueError, match=r"(?s)optimization_data=else.jsonl is absent, and .* would write .*samples"):
        sft.run(typed(shop, "dataset.optimization_data=else.jsonl"))
    assert not shop.runs.exists()
