"""Trace distillation as one command: eval.py's responses are sampled first, then the fine-tuning trains on them."""

import pytest
from end_to_end import EVAL, RL, SFT, read_jsonl
from omegaconf import OmegaConf

from configs import load_config
from runtime import run_config
from train import prepare, sft, traces
from train.setup.sources import settings_of

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
    with pytest.raises(ValueError, match=r"or set dataset.sample_with=null"):
        sft.run(typed(shop, "dataset.optimization_data=[a.jsonl,b.jsonl]"))
    assert not shop.runs.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dataset.validation_split=0.5", "dataset.validation_dataset={pairs}"], "both hold examples out"),
        (["dataset.validation_dataset=nope"], "no data set 'nope'"),
        (["experiment.early_stopping=1"], "needs a held-out loss"),
        (["training.block_size=8"], r"samples blocks of 4, and training.block_size is 8"),
        (["experiment.resume={folder}/nowhere"], "nowhere"),
    ],
)
def test_what_the_fine_tuning_cannot_be_is_said_before_sampling(shop, arguments, says):
    arguments = [each.format(pairs=shop.pairs, folder=shop.folder) for each in arguments]
    with pytest.raises(ValueError, match=says):
        sft.checked_sampling(typed(shop, *arguments))
    assert not shop.runs.exists()


def edited(shop, config, old, new):
    file = shop.folder / "traces.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return config


def test_an_evaluation_without_steps_is_refused_before_it_samples(shop):
    config = edited(shop, typed(shop), "threshold: 0.4", "threshold: 0.4, output_unmasking_history: false")
    with pytest.raises(ValueError, match="output_unmasking_history=false leaves the denoising steps out"):
        sft.checked_sampling(config)


@pytest.mark.slow
@pytest.mark.parametrize("has_ended", [False, True])
def test_responses_of_another_evaluation_are_refused_by_name(shop, has_ended):
    """Killed and edited, it went beside its folder, in full, and the data was still absent; ended, it was taken."""
    config, folder = typed(shop), shop.runs / "traces"
    first = traces.to_be_sampled(config)
    folder.mkdir(parents=True)
    run_config.write(folder / "config.yaml", settings_of(first, "eval"))
    (folder / "samples.jsonl").write_text("{}\n")
    if has_ended:
        (folder / "results.json").write_text("{}")
    assert (traces.to_be_sampled(config) is None) == has_ended
    edited(shop, config, "threshold: 0.4", "threshold: 0.5")
    with pytest.raises(ValueError, match=r"(?s)holds an evaluation of other settings:.*threshold +0.4 -> 0.5"):
        traces.to_be_sampled(config)
    edited(shop, config, "threads: 1", "threads: 1, overwrite: true")
    assert traces.to_be_sampled(config) is not None


@pytest.mark.slow
def test_rl_prepares_by_a_fine_tuning_that_samples_first(shop):
    config = typed(shop)
    lines = OmegaConf.to_yaml({"dataset": {"sample_with": config.dataset.sample_with}})
    shop.arguments(SFT)
    file = shop.folder / "first.yaml"
    given = OmegaConf.merge(OmegaConf.create(SFT), OmegaConf.create(lines))
    given.training.method = "trace"
    given.dataset.optimization_data = config.dataset.optimization_data
    given.model = {"pretrained_model": str(shop.model)}
    file.write_text(OmegaConf.to_yaml(given))
    made = shop.runs / "sft" / "ckpt" / "optimized"
    typed_rl = shop.arguments(RL, f"model.prepare_with={file}", f"model.pretrained_model={made}")
    first = prepare.checked_preparation(load_config(typed_rl, command="rl"))
    assert first.dataset.sample_with == config.dataset.sample_with and not shop.runs.exists()
