"""DPO as a run: from a file of pairs, from the model's own responses, resumed, and what it refuses."""

from types import SimpleNamespace

import pytest
from end_to_end import EVAL, SFT, read_jsonl, text_checkpoint, without_clock, write_json

from configs import load_config
from data.tasks import Example
from models import load_model
from models.spec import CheckpointSpec
from train import sft
from train.held_out import HeldOut
from train.memory.inputs import Inputs
from train.memory.plan import always
from train.setup.examples import tokenised
from train.setup.models import RunModels
from train.setup.traces import right_and_wrong

DPO = ("training.sft_objective=dpo", "training.method=elbo", "training.num_train_epochs=2")
ODD = "def is_odd(prompts, completions, **columns):\n    return [float(sum(map(ord, x)) % 2) for x in completions]\n"
ROWS = [{"prompt": f"{i}=", "chosen": f"{i}{i}", "rejected": "9" * (1 + i % 4) + "0"} for i in range(8)]


def config_of(shop, *arguments):
    pairs = write_json(shop.folder / "preferences.json", ROWS)
    return load_config(shop.arguments(SFT, *DPO, f"dataset.optimization_data={pairs}", *arguments), command="sft")


def metrics_of(shop, project):
    return without_clock(read_jsonl(shop.runs / project / "metrics.jsonl"))


def weights_of(shop, project):
    return (shop.runs / project / "ckpt" / "optimized" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_learns_its_pairs_and_resumes_to_the_bit(shop, capsys):
    typed = ["experiment.deterministic=true", "experiment.save_every=1", "training.max_steps=6"]
    assert sft.run(config_of(shop, "dry_run=true")) is None
    assert "8 pairs" in (said := capsys.readouterr().out) and "frozen reference" in said
    sft.run(config_of(shop, *typed, "experiment.project=straight"))
    sft.run(config_of(shop, *typed, "experiment.project=resumed", "training.max_steps=3"))
    final = sft.run(config_of(shop, *typed, "experiment.project=resumed"))
    assert metrics_of(shop, "resumed") == metrics_of(shop, "straight")
    assert weights_of(shop, "resumed") == weights_of(shop, "straight")
    first, *_, last = metrics_of(shop, "straight")
    assert first["margin"] == 0.0 and first["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert last["margin"] > 0.0 and last["loss"] < first["loss"]
    assert {"pair_accuracy", "gain/chosen", "gain/rejected", "nll"} <= last.keys()
    assert [final[name] for name in ("nll", "margin", "pair_accuracy")] == [
        pytest.approx(last[name], abs=1e-4) for name in ("nll", "margin", "pair_accuracy")
    ]
    with pytest.raises(ValueError, match="training.dpo_beta"):
        sft.run(config_of(shop, *typed, "experiment.project=resumed", "training.dpo_beta=0.2", "training.max_steps=7"))


@pytest.mark.slow
def test_held_out_pairs_are_whole_and_measured(shop):
    stops = ["experiment.early_stopping=9", "experiment.early_stopping_metric=margin"]
    held_out = ["dataset.validation_split=0.25", "experiment.eval_every=2", "experiment.project=held"]
    sft.run(config_of(shop, *held_out, *stops))
    figures = next(iter(read_evaluations(shop, "held")))
    assert figures["validation/margin"] == 0.0 and {"validation/loss", "validation/pair_accuracy"} <= figures.keys()


def read_evaluations(shop, project):
    rows = [row for file in (shop.runs / project).glob("*.jsonl") for row in read_jsonl(file)]
    return [row for row in rows if "validation/margin" in row]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["trace", "elbo"])
def test_pairs_of_the_models_own_responses_as_one_command(shop, method):
    """A right and a wrong response of each question, sampled first."""
    shop.arguments(EVAL)
    shop.reward.write_text(ODD)
    first = shop.folder / "first.yaml"
    first.write_text(
        EVAL.replace("project: eval", "project: own")
        .replace("template: plain}", f"template: plain, eval_dataset: {shop.tasks}}}")
        .replace("num_response_per_task: 2", "num_response_per_task: 6")
        .replace("{workers: 1}", f"{{workers: 1, function: '{shop.reward}:is_odd'}}")
    )
    data = [f"dataset.sample_with={first}", f"dataset.optimization_data={shop.runs}/own/samples.jsonl"]
    sft.run(config_of(shop, *data, f"training.method={method}", "dataset.pairs_per_task=2"))
    rows = read_jsonl(shop.runs / "own" / "samples.jsonl")
    right = {task: [row["reward"] >= 1 for row in rows if row["task"] == task] for task in {r["task"] for r in rows}}
    pairs = sum(min(2, sum(given), len(given) - sum(given)) for given in right.values())
    rows = metrics_of(shop, "sft")
    assert pairs >= 2 and rows[0]["margin"] == 0.0 and rows[-1]["margin"] != 0.0
    assert len(rows) == 2 * -(-pairs // 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dataset.traces_per_task=1"], "needs wrong responses too, which dataset.traces_per_task=1"),
        (["training.replaced_p=0.1"], "training.replaced_p=0.1 trains tokens that stand already"),
        (["dataset.optimization_data={pairs}"], "'chosen' is missing; the row has prompt, response"),
        (["training.dpo_beta=0"], "training.dpo_beta"),
        (
            ["training.sft_objective=nll", "training.replaced_p=0.1"],
            "elbo weighs masked tokens, and training.replaced_p=0.1",
        ),
        (
            ["training.sft_objective=nll", "training.normalization=reference", "training.post_num=1"],
            "training.normalization=reference leaves all but training.post_num=1 pads of a round out",
        ),
        (["model.reference_model=nowhere"], "model.reference_model"),
        (["model.reference_model={wide}"], "has another vocabulary than model.pretrained_model"),
    ],
)
def test_what_does_not_go_together_is_said_before_a_model_is_loaded(shop, arguments, says):
    wide = text_checkpoint(shop.folder / "wide", vocab_size=48)
    with pytest.raises(ValueError, match=says):
        sft.check(config_of(shop, *(each.format(pairs=shop.pairs, wide=wide) for each in arguments)))
    assert not shop.runs.exists()


@pytest.mark.parametrize(
    ("metric", "words"), [("margin", "margin rises"), ("pair_accuracy", "pair_accuracy rises"), ("auto", "loss falls")]
)
def test_a_run_stops_early_where_a_figure_of_pairs_gets_no_better(shop, metric, words):
    figures = [{"margin": x, "pair_accuracy": x, "loss": -x} for x in (0.0, 0.5, 0.75, 0.25, 0.5)]
    typed = [
        "dataset.validation_split=0.5",
        "experiment.early_stopping=2",
        f"experiment.early_stopping_metric={metric}",
    ]
    config = config_of(shop, *typed)
    sft.check(config)
    method, model = sft.method_of(config.training, "sft"), load_model(shop.model)
    held_out = [Example("1=", text, None) for text in ("12", "3")]
    for count, stale in ((4, False), (5, True)):
        measured = HeldOut(held_out, model, config, method, dict(enumerate(figures[:count])))
        assert measured.is_stale is stale and measured.no_gain == f"the held-out {words} no more"


def test_held_out_pairs_that_are_not_whole_are_named_as_such(shop):
    config, model, said = config_of(shop), load_model(shop.model), []
    held_out = [Example("1=", text, None) for text in ("12", "3")]
    held = HeldOut(held_out, model, config, sft.method_of(config.training, "sft"), {})
    nothing = SimpleNamespace(figures=lambda portions: None)
    held.measure(nothing, 3, SimpleNamespace(event=said.append))
    assert not held.found and "of each of its pairs a response has no token to train" in said[0]


def test_a_warning_about_raw_prompts_says_how_pairs_have_turns(shop, caplog):
    config, model = config_of(shop), load_model(shop.model)
    model.tokenizer.chat_template = "{{ messages }}"
    sides = [Example("1=", text, None) for text in ("12", "3")]
    tokenised(sides, model, config, sft.method_of(config.training, "sft"))
    assert "Give prompt as a list of turns, or chosen and rejected as such" in caplog.text


def test_texts_have_no_trace(shop):
    with pytest.raises(ValueError, match="training.method=trace needs a step_map"):
        sft.run(config_of(shop, "training.method=trace"))


def test_keys_without_effect_are_named(shop, caplog):
    sft.check(config_of(shop, "training.normalization=token_mean", "training.method=semi-ar"))
    assert "training.normalization is not read by training.sft_objective=dpo" in caplog.text
    assert "training.method=semi-ar with training.sft_objective=dpo: what it compares is no bound" in caplog.text
    typed = ["training.dpo_beta=0.3", "dataset.pairs_per_task=2", f"model.reference_model={shop.model}"]
    sft.check(load_config(shop.arguments(SFT, *typed), command="sft"))
    for key in ("training.dpo_beta", "dataset.pairs_per_task", "model.reference_model"):
        assert f"{key} has no effect: set training.sft_objective=dpo" in caplog.text
    typed = ["training.upper_p=0.8", "training.loss_weight=inverse_level", "training.unmasked_p=0.5"]
    sft.check(config_of(shop, *typed, "dataset.pairs_per_task=3"))
    for key in ("training.upper_p=0.8", "training.loss_weight=inverse_level"):
        assert f"{key} has no effect: training.method=elbo draws no noise level" in caplog.text
    assert "training.unmasked_p=0.5 has no effect: set training.replaced_p" in caplog.text
    assert "dataset.pairs_per_task=3 has no effect: every row is a pair already" in caplog.text
    caplog.clear()
    sft.check(config_of(shop, "dataset.pairs_per_task=null"))
    assert "pairs_per_task" not in caplog.text


def test_pairs_that_are_equal_or_cut_to_nothing_else_are_left_out(shop, caplog):
    config, model = config_of(shop, "training.max_gen_length=2"), load_model(shop.model)
    sides = [Example("1=", text, None) for text in ("123", "124", "13", "14", "1" * 9, "2")]
    kept = tokenised(sides, model, config, sft.method_of(config.training, "sft"))
    assert [sample.index for sample in kept] == [2, 3, 4, 5]
    assert "1 of 3 pairs are left out" in caplog.text
    with pytest.raises(ValueError, match="none of 1 pairs is left"):
        tokenised(sides[:2], model, config, sft.method_of(config.training, "sft"))


def response(task, reward, prompt=(1,)):
    return Example("", "", None, trace={"task": task, "reward": reward, "prompt_ids": list(prompt)})


def test_a_task_without_both_kinds_has_no_pair():
    given = [response("a", 1.0), response("a", 0.0), response("b", 1.0), response("a", 0.5), response("a", 1.0)]
    assert right_and_wrong(given, 1, "x") == [given[0], given[1]]
    assert right_and_wrong(given, 9, "x") == [given[0], given[1], given[4], given[3]]
    with pytest.raises(ValueError, match="x: no task of its 2 responses has both a right one"):
        right_and_wrong([response("a", 1.0), response("b", 0.0)], 1, "x")


@pytest.mark.parametrize("reward", [None, float("nan")])
def test_a_response_without_a_grade_is_neither_right_nor_wrong(caplog, reward):
    given = [response("a", 1.0), response("a", reward), response("a", 0.0)]
    assert right_and_wrong(given, 2, "x") == [given[0], given[2]]
    assert "x: 1 responses have no number as their reward: left out" in caplog.text
    with pytest.raises(ValueError, match="no task of its 2 responses has both"):
        right_and_wrong(given[:2], 1, "x")
    with pytest.raises(ValueError, match="x: none of the 1 responses has a number as its reward"):
        right_and_wrong(given[1:2], 1, "x")


def test_the_first_tasks_are_counted_before_they_are_paired():
    given = [response(task, reward) for task in "abc" for reward in (1.0, 0.0, 1.0, 0.0)]
    assert right_and_wrong(given, 2, "x", most_tasks=2) == given[:8]


def test_the_memory_plan_counts_the_reference(shop, tmp_path):
    policy = CheckpointSpec.read(shop.model)
    plain = Inputs.of(config_of(shop), RunModels.of(config_of(shop), policy, "sft"), response_tokens=8)
    assert always(plain)["frozen reference"] == 4 * plain.net.parameters
    larger = text_checkpoint(tmp_path / "larger", num_hidden_layers=6)
    config = config_of(shop, f"model.reference_model={larger}")
    inputs = Inputs.of(config, RunModels.of(config, policy, "sft"), response_tokens=8)
    assert always(inputs)["frozen reference"] > 4 * inputs.net.parameters
    nll = config_of(shop, "training.sft_objective=nll")
    assert "frozen reference" not in always(Inputs.of(nll, RunModels.of(nll, policy, "sft"), response_tokens=8))


@pytest.mark.slow
def test_adapters_on_two_sets_begin_at_their_base(shop):
    """The reference is the base; dropout does not enter the margins. Each set has a likelihood of its own."""
    other = write_json(shop.folder / "other.json", ROWS[:3])
    sets = f"dataset.optimization_data=[{shop.folder}/preferences.json, {other}]"
    sft.run(config_of(shop, "lora.rank=4", "lora.dropout=0.2", sets, "experiment.project=adapted"))
    first, *_, last = metrics_of(shop, "adapted")
    assert first["margin"] == 0.0 and last["margin"] > 0.0
    assert {"nll(preferences)", "nll(other)", "trained_tokens(other)"} <= {*first, *last}
