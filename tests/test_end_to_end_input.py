"""Bad input to whole runs: a clear error before any work, or a counted skip. Nothing is lost."""

import json
import logging
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from end_to_end import EVAL, RL, SFT, read_jsonl, text_checkpoint, without_clock, write_json
from helpers import tiny_checkpoint

from configs import load_config, resolved
from models import load_model
from reward.code.sandbox import find_isolation
from runtime import run_config
from runtime.run_config import Settings
from train import evaluation, rl, sft
from train.collect import Collector
from train.prepare import preparation
from train.setup import models as setup_models

BREAKS = """
import os

calls = []


def breaks(prompts, completions, **columns):
    calls.append(len(calls) + 1)
    if calls[-1] > 1 and os.path.exists({broken!r}):
        raise OSError("the judge's disk is full")
    return [sum(c in "01234" for c in text) / max(1, len(text)) for text in completions]
"""
QUICK = ["experiment.total_step=1", "evaluation.eval_dataset=''"]
TEST = "evaluation.eval_dataset=${dataset.train_dataset}"


@pytest.fixture
def no_model_work(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("a model was loaded before the mistake was found")

    for name in ("load_model", "load_value_model"):
        monkeypatch.setattr(setup_models, name, refuse)


def run_rl(shop, *arguments, **named):
    return rl.run(load_config(shop.arguments(RL, *QUICK, *arguments, **named)))


def metrics_of(shop, run="rl"):
    return read_jsonl(shop.runs / run / "metrics.jsonl")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model.pretrained_model=/nowhere/model"], "model.pretrained_model: model path '/nowhere/model' does not"),
        (["model.pretrained_model=''"], "model.pretrained_model is not set"),
        (["dataset.train_dataset=nowhere"], "dataset.train_dataset: no data set 'nowhere'"),
        (["dataset.template=chat"], "dataset.template=chat: template 'chat' is the chat template of the checkpoint's"),
        (["dataset.template=chatt"], "dataset.template=chatt: unknown template 'chatt'"),
        (["dataset.train_dataset=''"], "dataset.train_dataset is not set"),
        (["dataset.train_dataset=MATH_train"], "python data/download_data.py --dataset MATH_train"),
        (["evaluation.eval_dataset=nowhere"], "evaluation.eval_dataset: no data set 'nowhere'"),
        (["reward.function=nowhere.py:f"], "reward.function: no file 'nowhere.py'"),
        (["judge.local=/nowhere/judge"], "judge.local: model path '/nowhere/judge'"),
        (["experiment.resume=/nowhere/step-000001"], "experiment.resume=/nowhere/step-000001"),
        (["experiment.deepspeed_file=nowhere"], "experiment.deepspeed_file=nowhere"),
        (["tracking.report_to=[trackio]"], "tracking.report_to=trackio: the package trackio is not installed"),
        (["rollout.num_response_per_task=1"], "group of one"),
        (["training.method=semi-ar"], "semi-ar"),
        (["training.min_accuracy=0.9", "training.max_accuracy=0.1"], "min_accuracy"),
        (
            ["training.objective=gspo", "model.value_base_model=${model.pretrained_model}"],
            "training.objective=gspo needs one advantage a response, and model.value_base_model=",
        ),
        (["reward.speed_goal=apart"], "reward.speed_goal=apart with reward.speed_weight=0 trains no speed"),
        (
            ["reward.min_speed_spread=0.1"],
            "reward.min_speed_spread needs a speed of its own: set reward.speed_goal=apart",
        ),
        (
            ["training.whiten_advantages=true", "model.value_base_model=${model.pretrained_model}"],
            "training.whiten_advantages: a value model",
        ),
        (["training.rows_by=surprisal"], "training.rows_by=surprisal draws rows: set training.rows_per_response"),
        (
            ["training.trained_events=last"],
            "training.trained_events=last: nothing is overwritten; set rollout.edit_thre",
        ),
        (["training.rollout_rejection=geometric", "training.logp_old=rollout"], "training.rollout_rejection=geometric"),
        (
            ["training.rollout_correction=masked", "training.shrink=2"],
            "it needs training.method=TraceRL, training.shrink=1",
        ),
        (["model.model_base=llama"], "llama"),
        (["model.model_base=dream"], "model.model_base 'dream' and"),
        (["model.model_base=draem"], "Did you mean 'dream'?"),
        (["model.value_base_model=/nowhere/value"], "model.value_base_model: model path '/nowhere/value'"),
        (["model.value_base_model=${model.pretrained_model}", "model.optimized_value_name=optimized"], "a name each"),
        (["model.device=cuda"], "cuda"),
        (["training.block_size=8", "rollout.block_size=4"], "training.block_size=8"),
        (["rollout.block_size=[4,8]"], "rollout.block_size"),
        (["rollout.top_k=[0,1]"], "rollout.top_k"),
        (["rollout.remasking_strategy=[sequential]"], "rollout.remasking_strategy"),
        (["rollout.remasking_strategy=low_confidence_dynamc"], "rollout.remasking_strategy is 'low_confidence_dynamc'"),
        (["rollout.strategy=low_confidence_dynamc"], "Did you mean 'low_confidence_dynamic'?"),
        (["evaluation.strategy=[sequential,entropy_bound]"], "evaluation.strategy is 'entropy_bound'"),
        (["rollout.target=margin_confidense"], "Did you mean 'margin_confidence'?"),
        (["evaluation.target=topk_margins"], "Did you mean 'topk_margin'?"),
        (["rollout.strategy=nowhere.py:f"], "rollout.strategy: no file 'nowhere.py'"),
        (["rollout.steps=2"], "rollout.steps=2 are fewer than the 3 blocks of 4 tokens in 10"),
        (["rollout.block_size=null", "rollout.steps=2"], "rollout.steps=2 are fewer than the 3 blocks of 4 tokens"),
        ([TEST, "evaluation.steps=2"], "evaluation.steps=2 are fewer than the 3 blocks of 4 tokens in 10"),
        (
            ["rollout.steps=9", "rollout.steps_per_block=4"],
            "rollout.steps=9 and rollout.steps_per_block=4 mean the same",
        ),
        (["model.prepare_with=nowhere.yaml"], "model.prepare_with: nowhere.yaml"),
        (["rollout.max_token=256"], "rollout.max_token=256 and a prompt of one token exceed the 256 positions"),
        (["rollout.max_gen_length=300"], "rollout.max_gen_length=300 and a prompt"),
        ([TEST, "evaluation.max_token=256"], "evaluation.max_token=256 and a prompt of one token exceed the 256"),
    ],
)
def test_a_mistake_is_reported_before_any_model_is_loaded(shop, no_model_work, arguments, says):
    if arguments == ["model.device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for dry_run in ("false", "true"):
        with pytest.raises(ValueError) as error:
            run_rl(shop, f"dry_run={dry_run}", *arguments)
        assert says in str(error.value)
    assert not shop.runs.exists()


@pytest.mark.slow
def test_a_key_that_the_objective_does_not_read_is_named_once(shop, no_model_work, caplog):
    run_rl(shop, "dry_run=true", "training.objective=reinforce", "training.eps=0.3", "training.kl_estimator=k1")
    assert [m for m in caplog.messages if "is not read" in m] == [
        "training.eps is not read by training.objective=reinforce"
    ]


@pytest.mark.slow
def test_a_folder_without_weights_is_reported_in_a_dry_run(shop, no_model_work, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shop.model / name, tmp_path / name)
    named = [f"model.pretrained_model={tmp_path}", "dry_run=true"]
    with pytest.raises(ValueError, match=f"{tmp_path} has no weights"):
        run_rl(shop, *named)
    run_rl(shop, *named, "model.random_init=true")
    for key in ("model.value_base_model", "judge.local"):
        with pytest.raises(ValueError, match=f"{key}: {tmp_path} has no weights"):
            run_rl(shop, f"{key}={tmp_path}", "dry_run=true")
    with pytest.raises(ValueError, match=f"model.pretrained_model: {tmp_path} has no weights"):
        evaluation.run(load_config(shop.arguments(EVAL, *named)))


@pytest.mark.slow
def test_a_dry_run_goes_through_beside_a_run_of_another_configuration(shop, no_model_work, capsys):
    for text, run in ((RL, rl.run), (SFT, sft.run)):
        config = load_config(shop.arguments(text, "dry_run=true"))
        run(config)
        assert "holds a run of another configuration" not in capsys.readouterr().out
        folder = shop.runs / config.experiment.project
        folder.mkdir(parents=True)
        other = replace(config, training=replace(config.training, seed=7))
        run_config.write(folder / "config.yaml", Settings(resolved(other)))
        run(config)
        assert f"{folder} holds a run of another configuration" in capsys.readouterr().out
        with pytest.raises(ValueError, match="holds a run of another configuration"):
            run(replace(config, dry_run=False))


@pytest.mark.parametrize(
    ("template", "says"),
    [("{{ raise_exception('no') }}", "chat template fails (TemplateError: no)"), ("hi", "leaves the user's turn out")],
)
def test_a_chat_template_that_cannot_work_is_reported_before_any_model_is_loaded(
    shop, no_model_work, tmp_path, template, says
):
    shutil.copytree(shop.model, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    named = [f"model.pretrained_model={tmp_path / 'model'}", "dataset.template=chat"]
    for call in (lambda: run_rl(shop, *named), lambda: evaluation.run(load_config(shop.arguments(EVAL, *named)))):
        with pytest.raises(ValueError) as error:
            call()
        assert says in str(error.value) and "\n" not in str(error.value)
        assert str(error.value).startswith("dataset.template=chat: ")


QUESTIONS = [{"question": "1="}, {"question": "2="}]
PROGRAMS = [{"question": "1=", "test_method": "function", "test_list": ["assert f() == 1"], "test_time_limit": 1e9}]
WANTS = """
def wants(prompts, completions, ground_truth_answer, num_steps, level="none"):
    return [1.0] * len(completions)
"""


@pytest.mark.parametrize(
    ("rows", "arguments", "function", "says"),
    [
        (QUESTIONS, [], None, "the math reward (or name a reward.function) needs the column 'ground_truth_answer'"),
        (QUESTIONS, [], "wants", "asks for ['ground_truth_answer'], but the columns are ['completion_ids', "),
        (QUESTIONS, ["reward.beside_verifier=true"], "always_one", "needs the column 'ground_truth_answer'"),
        (PROGRAMS, ["DATA_TYPE=code"], None, "task 1: test_time_limit must be 0 to 600 seconds"),
    ],
)
@pytest.mark.parametrize("key", ["dataset.train_dataset", "evaluation.eval_dataset", "dataset.eval_dataset"])
def test_tasks_that_a_reward_cannot_grade_are_reported_before_any_model_is_loaded(
    shop, no_model_work, key, rows, arguments, function, says
):
    if "DATA_TYPE=code" in arguments and find_isolation() is None:
        pytest.skip("no sandbox here")
    shop.reward.write_text(shop.reward.read_text() + WANTS)
    path = write_json(shop.folder / "poor.json", rows)
    section = "evaluation" if key.startswith("evaluation") else "dataset"
    arguments = [word.replace("DATA_TYPE", f"{section}.data_type") for word in arguments]
    if key == "dataset.eval_dataset":
        run, text = evaluation.run, EVAL
        if function == "always_one":
            function = None  # it has no part in evaluating
            arguments = []
    else:
        run, text = rl.run, RL
    for dry_run in ("false", "true"):
        with pytest.raises(ValueError) as error:
            run(load_config(shop.arguments(text, f"{key}={path}", f"dry_run={dry_run}", *arguments, reward=function)))
        assert f"{key}: " in str(error.value) and says in str(error.value)
    assert not shop.runs.exists()


@pytest.mark.slow
def test_a_column_that_some_tasks_lack_is_none_in_the_others(shop):
    """Whichever tasks a step draws, the function has what it asks for, and rollouts.jsonl what the task is."""
    shop.reward.write_text(
        "def levels(completions, level, **columns):\n"
        "    assert set(level) <= {3, None}\n"
        "    return [float(one or 0) for one in level]\n"
    )
    rows = [{"question": f"{i}=", "level": 3} if i == 0 else {"question": f"{i}="} for i in range(3)]
    arguments = [task_file(shop, json.dumps(rows)), "rollout.num_task_per_step=1", "experiment.total_step=3"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rl.run(load_config(shop.arguments(RL, *QUICK, *arguments, reward="levels")))
    assert {row["task"]: row["reward"] for row in read_jsonl(shop.runs / "rl" / "rollouts.jsonl")} == {
        "1": 3.0, "2": 0.0, "3": 0.0,
    }  # fmt: skip
    for row in read_jsonl(shop.runs / "rl" / "rollouts.jsonl"):
        assert row["columns"] == {"question": row["prompt"], "level": 3 if row["task"] == "1" else None}
        assert row["answer"] is None and isinstance(row["completion"], str)


@pytest.mark.slow
@pytest.mark.parametrize("section", ["rollout", "evaluation"])
def test_prompts_without_room_for_an_answer_are_reported_before_the_first_rollout(shop, monkeypatch, section):
    """256 positions; the longest question has 7 tokens, the evaluation's 4."""
    monkeypatch.setattr(Collector, "sample", lambda *arguments: pytest.fail("a rollout began"))
    arguments = ["experiment.eval_first=false", f"{section}.max_token=253"]
    says = (
        rf"{section}.max_token=253 and the {7 if section == 'rollout' else 4} tokens of .*'s prompt .* exceed the 256"
    )
    with pytest.raises(ValueError, match=says):
        rl.run(load_config(shop.arguments(RL, *arguments)))
    with pytest.raises(ValueError, match="rollout.max_token=253 and the 4 tokens"):
        evaluation.run(load_config(shop.arguments(EVAL, "rollout.max_token=253")))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rollout.temperature=0"], "greedy responses to a prompt hardly differ"),
        (["lora.alpha=64"], "lora.alpha=64.0: no effect while lora.rank is 0; set it"),
        (["rollout.block_size=8", TEST, "evaluation.block_size=4"], "evaluation in blocks of [4], of a model that"),
        (
            ["rollout.block_size=8", TEST, "rollout.denoising_steps_per_block=8"],
            None,  # the evaluation's blocks are the trained ones
        ),
        ([TEST, "rollout.block_size=4"], None),
        ([TEST, "evaluation.block_size=[2,4]"], None),
    ],
)
def test_what_cannot_be_meant_is_warned_about(shop, no_model_work, caplog, arguments, says):
    run_rl(shop, *arguments, "dry_run=true")
    assert says in caplog.text if says else "blocks of" not in caplog.text and "greedy" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rollout.max_post_steps=4"], "rollout.max_post_steps=4 has no effect: set rollout.edit_threshold or"),
        (["evaluation.remask_budget=4"], "evaluation.remask_budget=4 has no effect: set evaluation.remask_threshold"),
        (["rollout.remask_budget=4", "rollout.edit_threshold=0.9"], "rollout.remask_budget=4 has no effect"),
        (["rollout.max_post_steps=4", "rollout.edit_threshold=0.9"], None),
        (["training.shrink=2", "training.method=coupled"], "training.shrink=2 has no effect: training.method=coupled"),
        (
            ["training.trained_events=last", "training.method=elbo", "rollout.edit_threshold=0.9"],
            "training.trained_events=last has no effect: training.method=elbo",
        ),
        (["training.lower_p=0.2", "training.method=elbo"], "training.lower_p=0.2 has no effect: training.method=elbo"),
        (["training.shrink=2"], None),
        (
            ["training.rollout_correction_limit=3", "training.rollout_rejection=token"],
            "training.rollout_correction_limit=3.0 has no effect: set training.rollout_correction",
        ),
        (
            ["training.rollout_rejection_low=0.9", "training.rollout_correction=masked"],
            "training.rollout_rejection_low=0.9 has no effect: set training.rollout_rejection",
        ),
        (
            ["training.kl_to=reference", "training.beta=0"],
            "training.kl_to=reference has no effect: training.beta, the weight of the KL, is 0",
        ),
        (["training.kl_to=reference", "training.beta=0", "training.objective_params.beta=0.1"], None),
        (
            [
                "training.objective=distill",
                "model.reference_model=${model.pretrained_model}",
                "training.advantage=rank",
            ],
            "training.objective=distill learns from its teacher alone: no effect of training.advantage=rank",
        ),
    ],
)
def test_keys_without_effect_are_named(shop, no_model_work, caplog, arguments, says):
    run_rl(shop, *arguments, "dry_run=true")
    assert says in caplog.text if says else "no effect" not in caplog.text


def test_shrink_has_no_effect_in_an_sft_of_random_masks(shop, no_model_work, caplog):
    typed = [f"model.pretrained_model={shop.model}", f"dataset.optimization_data={shop.pairs}", "dry_run=true"]
    sft.run(load_config(shop.arguments(SFT, *typed, "training.shrink=2")))
    assert "training.shrink=2 has no effect: training.method=semi-ar" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("rollout.num_response_per_task=1", "a group of one has no advantage"),
        ("dataset.train_dataset=nowhere", "dataset.train_dataset: no data set 'nowhere'"),
        ("evaluation.eval_dataset=nowhere", "evaluation.eval_dataset: no data set 'nowhere'"),
    ],
)
def test_a_runs_own_mistakes_are_told_before_those_of_the_sft_that_makes_its_model(
    shop, no_model_work, capsys, argument, says
):
    shop.arguments(SFT)
    first = shop.folder / "first.yaml"
    first.write_text((shop.folder / "sft.yaml").read_text() + "model: {pretrained_model: nowhere}\n")
    arguments = [f"model.prepare_with={first}", f"model.pretrained_model={shop.runs}/sft/ckpt/optimized"]
    with pytest.raises(ValueError, match=says):
        run_rl(shop, *arguments, argument, "dry_run=true")
    assert "dry run" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_sft_that_makes_the_model_is_checked_first(shop, no_model_work, capsys):
    shop.arguments(SFT)
    text = (shop.folder / "sft.yaml").read_text()
    first = shop.folder / "first.yaml"
    first.write_text(f"{text}model: {{pretrained_model: {shop.model}}}\ndataset: {{optimization_data: {shop.pairs}}}\n")
    arguments = [f"model.prepare_with={first}", f"model.pretrained_model={shop.runs}/sft/ckpt/optimized"]
    assert run_rl(shop, *arguments, "dry_run=true") is None
    out = capsys.readouterr().out
    assert out.index("dry run of sft:") < out.index("dry run of rl:") and out.count("update  ") >= 2
    with pytest.raises(ValueError, match="rollout.max_token=256 and a prompt"):
        run_rl(shop, *arguments, "rollout.max_token=256", "dry_run=true")
    with pytest.raises(ValueError, match="pretrained_model=elsewhere is absent, and model.prepare_with=.* would write"):
        run_rl(shop, *arguments, "model.pretrained_model=elsewhere")
    first.write_text(first.read_text().replace("semi-ar", "ar"))
    for dry_run in ("false", "true"):
        with pytest.raises(ValueError, match="training.method=ar needs a model that predicts the next token"):
            run_rl(shop, *arguments, f"dry_run={dry_run}")
    first.write_text(first.read_text() + "reward: {workers: 2}\n")
    with pytest.warns(match=f"{first} sets keys that train/sft.py does not read: reward.workers"):
        preparation(load_config(shop.arguments(RL, *arguments)))
    assert not shop.runs.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["training.method=TraceRL"], "TraceRL"),
        (["training.lower_p=0.8", "training.upper_p=0.2"], "lower_p"),
        (["dataset.optimization_data=nowhere"], "nowhere"),
        (["model.model_base=llada"], "model.model_base 'llada' and .* disagree"),
        (["training.method=ar"], "training.method=ar needs a model that predicts the next token"),
    ],
)
def test_a_mistake_in_sft(shop, no_model_work, arguments, says):
    with pytest.raises(ValueError, match=says):
        sft.run(load_config(shop.arguments(SFT, *arguments)))
    assert not shop.runs.exists()


def task_file(shop, text, name="broken.json"):
    path = shop.folder / name
    path.write_text(text)
    return f"dataset.train_dataset={path}"


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ('[{"question": "1=", "ground_truth_answer": "1"},\n {"question": }]', "broken.json", "line 2"),
        ('{"question": "1=", "ground_truth_answer": "1"}\n{"question"\n', "broken.jsonl", "line 2"),
        ('[{"question": "1=", "ground_truth_answer": "1"}, {"ground_truth_answer": "1"}]', "broken.json", "question"),
        ('[{"question": 5, "ground_truth_answer": "1"}]', "broken.json", "question"),
        ("[]", "broken.json", "no usable row"),
        ("", "broken.json", "broken.json"),
    ],
)
def test_a_broken_task_file_is_named_with_its_place(shop, text, name, says):
    with pytest.raises(ValueError) as error:
        run_rl(shop, task_file(shop, text, name))
    assert name in str(error.value) and says in str(error.value)


@pytest.mark.slow
def test_empty_prompts_are_left_out_and_counted(shop):
    rows = [{"question": q, "ground_truth_answer": "1"} for q in ("1=", "", "22=", "333=", "4=")]
    with pytest.warns(UserWarning, match="left out 1 of 5 rows: question is empty"):
        run_rl(shop, task_file(shop, json.dumps(rows)), "rollout.num_task_per_step=4")
    assert {row["task"] for row in read_jsonl(shop.runs / "rl" / "rollouts.jsonl")} == {"1", "3", "4", "5"}


def test_empty_examples_are_left_out_and_counted(shop):
    pairs = [{"prompt": p, "response": r} for p, r in (("1=", "1"), ("2=", ""), ("", "3"), ("4=", "4"))]
    path = write_json(shop.folder / "pairs2.json", pairs)
    with pytest.warns(UserWarning, match="left out 2 of 4 rows"):
        sft.run(load_config(shop.arguments(SFT, f"dataset.optimization_data={path}", "training.num_train_epochs=1")))
    assert len(metrics_of(shop, "sft")) == 1


def long_tasks(shop):
    return task_file(
        shop, json.dumps([{"question": "1" * n, "ground_truth_answer": "1"} for n in (3, 40, 4, 50)]), "long.json"
    )


@pytest.mark.slow
def test_over_long_prompts_are_dropped_and_counted(shop, caplog):
    with caplog.at_level(logging.WARNING):
        run_rl(shop, long_tasks(shop), "training.max_prompt_len=20", "rollout.num_task_per_step=2")
    assert "2 of 4 prompts exceed training.max_prompt_len=20" in caplog.text and "longest 50" in caplog.text
    lengths = {len(row["prompt_ids"]) for row in read_jsonl(shop.runs / "rl" / "rollouts.jsonl")}
    assert lengths == {3, 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["dataset.over_long_prompts=error", "training.max_prompt_len=20"], ["training.max_prompt_len=2"]]
)
def test_over_long_prompts_as_an_error(shop, arguments):
    with pytest.raises(ValueError, match="max_prompt_len"):
        run_rl(shop, long_tasks(shop), *arguments)


def test_over_long_prompts_as_an_error_in_sft(shop):
    arguments = ["training.max_prompt_len=1", "dataset.over_long_prompts=error"]
    with pytest.raises(ValueError, match="prompts exceed training.max_prompt_len=1.*over_long_prompts"):
        sft.run(load_config(shop.arguments(SFT, *arguments)))


@pytest.mark.slow
def test_a_malformed_evaluation_set_is_reported_before_any_model_is_loaded(shop, monkeypatch):
    broken = shop.folder / "broken.json"
    broken.write_text('[{"question": "12=", "ground_truth_answer": ')
    monkeypatch.setattr(setup_models, "load_model", None)
    for arguments in ([], ["dry_run=true"]):
        with pytest.raises(ValueError, match="broken.json"):
            run_rl(shop, f"evaluation.eval_dataset={broken}", *arguments)
        with pytest.raises(ValueError, match="broken.json"):
            evaluation.run(load_config(shop.arguments(EVAL, f"dataset.eval_dataset={broken}", *arguments)))
        with pytest.raises(ValueError, match="broken.json"):
            sft.run(load_config(shop.arguments(SFT, f"dataset.optimization_data={broken}", *arguments)))


@pytest.mark.slow
def test_questions_that_hold_the_mask_token_are_left_out(shop, caplog):
    tasks = [{"question": q, "ground_truth_answer": "1"} for q in ("12=", "1<mask>2=", "34=")]
    summary = run_rl(shop, task_file(shop, json.dumps(tasks)), "experiment.total_step=1")
    assert summary["steps"] == 1 and "1 of 3 prompts hold the mask token" in caplog.text


def test_examples_that_hold_the_mask_token_are_left_out(shop, caplog):
    pairs = write_json(
        shop.folder / "masks.json", [{"prompt": "12=", "response": r} for r in ("21", "<mask><mask>", "12")]
    )
    sft.run(load_config(shop.arguments(SFT, f"dataset.optimization_data={pairs}", "training.num_train_epochs=1")))
    assert "1 of 3 examples hold the mask token" in caplog.text


def test_the_first_examples_only(shop):
    sft.run(load_config(shop.arguments(SFT, "dataset.max_tasks=2", "training.num_train_epochs=1")))
    assert [row["step"] for row in read_jsonl(shop.runs / "sft" / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("project", ["", "../../x", "/tmp/x", "x" * 300, "two\nlines"])
def test_a_project_outside_its_folder_is_refused(shop, project):
    with pytest.raises(ValueError, match="experiment.project"):
        run_rl(shop, f"experiment.project={project}")


@pytest.mark.slow
def test_longest_response_trained(shop):
    """training.max_gen_length=3 of responses of up to 8 tokens."""
    run_rl(shop, "training.max_gen_length=3", "training.min_accuracy=0", "training.max_accuracy=1", *QUICK)
    (row,) = read_jsonl(shop.runs / "rl" / "metrics.jsonl")
    rollouts = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    trained = [min(3, r["num_response_tokens"]) for r in rollouts if r["advantage"] is not None]
    assert row["trained_tokens"] == sum(trained) > 0


def test_sft_names_its_block_size(shop):
    sft.run(load_config(shop.arguments(SFT, "training.block_size=8", "training.num_train_epochs=1")))
    assert load_model(shop.runs / "sft" / "ckpt" / "optimized").block_size == 8


@pytest.mark.slow
def test_more_tasks_a_step_than_there_are(shop):
    """The data set is passed over again; a task drawn twice is sampled anew, not copied."""
    run_rl(shop, task_file(shop, '[{"question": "12=", "ground_truth_answer": "1"}]'), "rollout.num_task_per_step=3")
    rows = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    assert len(rows) == 12 and len({tuple(row["key"]) for row in rows}) == 12
    assert len({tuple(row["canvas_ids"]) for row in rows}) > 6


@pytest.mark.slow
def test_empty_answers_run_through(shop):
    """Every digit stops: an answer that is its stop id alone has the empty text, which rewards get as it is."""
    stops = "[" + ",".join(f"'{d}'" for d in "0123456789=-+*/?!;:.") + "]"
    run_rl(shop, f"rollout.stop_token_list={stops}", "rollout.temperature=5.0", reward="by_answer")
    rows = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    empty = [row for row in rows if row["completion"] == ""]
    assert empty and all(row["num_response_tokens"] == 1 and row["reward"] == 1.0 for row in empty)


@pytest.mark.slow
def test_a_checkpoint_without_an_end_of_text(shop, tmp_path):
    """RL goes on to the limit; SFT, which must teach an end, asks for one."""
    folder = text_checkpoint(tmp_path / "endless", eos_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_model(folder).eos_ids == ()
    run_rl(shop, f"model.pretrained_model={folder}")
    assert metrics_of(shop)[0]["truncated"] == 1.0 and metrics_of(shop)[0]["completion_length"] == 10
    with pytest.raises(ValueError, match="eos_token_id"):
        sft.run(load_config(shop.arguments(SFT, f"model.pretrained_model={folder}")))


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "trained"), [("keep", True), ("drop", False), ("wrong", False)])
def test_answers_without_a_stop(shop, tmp_path, policy, trained):
    folder = text_checkpoint(tmp_path / "endless", eos_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    run_rl(shop, f"model.pretrained_model={folder}", f"training.truncated={policy}")
    (row,) = metrics_of(shop)
    assert ("loss" in row) == trained and row["truncated"] == 1.0
    if not trained:
        assert row[f"groups_dropped/{'small' if policy == 'drop' else 'equal'}"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["raises", "too_few", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_reward_that_fails_is_a_counted_skip(shop, reward):
    arguments = ["reward.function_timeout_seconds=1"] if reward == "hangs" else []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_rl(shop, *arguments, reward=reward)
    assert any(f"my_reward.py:{reward}" in str(w.message) for w in caught)
    (row,) = metrics_of(shop)
    assert row["reward/failed_call_count"] == 1 and row["reward/left_out"] == 16
    assert row["groups_dropped/unrewarded"] == 4 and "loss" not in row
    assert all(r["reward"] is None for r in read_jsonl(shop.runs / "rl" / "rollouts.jsonl"))


@pytest.mark.slow
def test_a_reward_that_keeps_failing_stops_the_run(shop):
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="(?s)3 calls in a row failed.*ZeroDivisionError"):
        run_rl(shop, "experiment.total_step=5", reward="raises")
    assert len(metrics_of(shop)) == 2


@pytest.mark.slow
def test_a_mended_reward_grades_again_what_failed(shop, monkeypatch):
    """It fails in step 2, of which no checkpoint is left; the run ends as one that it never failed in."""
    broken, arguments = shop.folder / "broken", ["experiment.total_step=2", "experiment.save_every=2"]
    shop.reward.write_text(BREAKS.format(broken=str(broken)))
    run_rl(shop, *arguments, "experiment.project=straight", reward="breaks")

    def dies(run, step):
        raise OSError("no room")

    broken.touch()
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="raised"), pytest.raises(OSError):
        patch.setattr(rl.Run, "save", dies)
        run_rl(shop, *arguments, reward="breaks")
    assert [row["reward/left_out"] for row in metrics_of(shop)] == [0, 16]
    broken.unlink()
    run_rl(shop, *arguments, reward="breaks")
    straight, mended = (read_jsonl(shop.runs / run / "rollouts.jsonl") for run in ("straight", "rl"))
    assert straight == mended and without_clock(metrics_of(shop)) == without_clock(metrics_of(shop, "straight"))


@pytest.mark.slow
def test_a_reward_that_is_not_a_number_leaves_its_answer_out(shop):
    with pytest.warns(UserWarning, match="8 non-finite rewards"):
        run_rl(shop, reward="not_a_number")
    (row,) = metrics_of(shop)
    assert row["reward/left_out"] == 8 and row["reward/nonfinite_count"] == 8
    rows = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    assert [r["reward"] is None for r in rows] == [False, True] * 8
    assert all(r["advantage"] is None for r in rows if r["reward"] is None)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [2, 8])
def test_another_block_size_than_the_checkpoints_is_warned_about(shop, caplog, block_size):
    with caplog.at_level(logging.WARNING):
        run_rl(shop, f"rollout.block_size={block_size}")
    assert f"block size {block_size} is not the checkpoint's 4" in caplog.text
    (row,) = metrics_of(shop)
    assert row["updates"] >= 1 and row["mismatch_kl"] < 1e-9


@pytest.mark.slow
def test_rollouts_that_are_not_finite_are_named_when_nothing_else_is_left(shop, monkeypatch, caplog, capsys):
    """A step with advantages but without a usable rollout is skipped and says why."""
    import dataclasses

    rollout = Collector.sample

    def spoiled(self, prompts, step):
        return [
            dataclasses.replace(r, canvas_logprobs=[float("-inf")] * len(r.canvas_ids))
            for r in rollout(self, prompts, step)
        ]

    monkeypatch.setattr(Collector, "sample", spoiled)
    with caplog.at_level(logging.WARNING):
        run_rl(shop)
    (row,) = metrics_of(shop)
    assert "loss" not in row and row["rollouts_skipped"] > 0
    assert "non-finite" in caplog.text and "non-finite" in capsys.readouterr().out
    first, last = (load_model(f).state_dict() for f in (shop.model, shop.runs / "rl" / "ckpt" / "optimized"))
    assert all(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.slow
def test_eval_of_one_task_with_one_answer(shop):
    metrics = evaluation.run(
        load_config(shop.arguments(EVAL, "rollout.num_response_per_task=1", "dataset.max_tasks=1"))
    )
    (values,) = metrics.values()
    assert values["tasks"] == 1 and values["stderr"] == 0.0 and values["pass@1"] == values["accuracy"]


@pytest.mark.slow
def test_eval_of_answers_that_no_reward_wants(shop, caplog):
    with pytest.warns(UserWarning):
        metrics = evaluation.run(load_config(shop.arguments(EVAL, reward="raises")))
    (values,) = metrics.values()
    assert values["left_out"] == 6 and "accuracy" not in values and "reward" not in values
    assert "no response has a reward" in caplog.text


@pytest.mark.slow
def test_a_stop_text_of_several_tokens_is_an_error(shop):
    with pytest.raises(ValueError, match="stop_token_list: '12' is 2 tokens"):
        run_rl(shop, "rollout.stop_token_list=['12']")


def test_a_value_model_of_another_family_is_refused(shop, tmp_path, no_model_work):
    other = tiny_checkpoint(tmp_path / "other", "llada")
    with pytest.raises(ValueError, match="is a llada checkpoint, model.pretrained_model a sdar one"):
        run_rl(shop, f"model.value_base_model={other}")


@pytest.mark.slow
def test_a_model_without_a_tokenizer_is_an_error(shop, tmp_path):
    folder = tiny_checkpoint(tmp_path / "mute")
    with pytest.raises(ValueError, match="no tokenizer"):
        run_rl(shop, f"model.pretrained_model={folder}")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_broken_checkpoint_is_named(shop, tmp_path, name):
    folder = text_checkpoint(tmp_path / "broken")
    (folder / name).write_bytes(b"not what it should be")
    with pytest.raises(ValueError) as error:
        run_rl(shop, f"model.pretrained_model={folder}")
    assert str(folder) in str(error.value)


def too_long(shop, dpo):
    """Of four examples the second and the fourth exceed the 256 positions of the model (one response of each pair)."""
    texts = [("1=", "1"), ("1" * 200 + "=", "2" * 80), ("3=", "3"), ("4=", "4" * 300)]
    rows = [{"prompt": prompt, "response": response} for prompt, response in texts]
    if dpo:
        rows = [{"prompt": prompt, "chosen": response, "rejected": "0"} for prompt, response in texts]
    return f"dataset.optimization_data={write_json(shop.folder / 'too_long.json', rows)}"


@pytest.mark.parametrize("dpo", [False, True])
@pytest.mark.parametrize("more", [[], ["dry_run=true"]])
def test_examples_that_exceed_the_positions_of_the_model_are_refused_before_it_is_loaded(shop, monkeypatch, dpo, more):
    monkeypatch.setattr(sft, "make_trained_model", lambda *given: pytest.fail("the model is loaded"))
    arguments = [too_long(shop, dpo), *(["training.sft_objective=dpo"] if dpo else []), *more]
    says = (
        f"2 of {8 if dpo else 4} examples exceed the 256 positions.*2 . 300 tokens: lower training.max_prompt_len=784"
    )
    with pytest.raises(ValueError, match=says):
        sft.run(load_config(shop.arguments(SFT, *arguments)))
    sft.check(load_config(shop.arguments(SFT, *arguments, "training.max_prompt_len=150", "training.max_gen_length=60")))


def test_the_end_id_counts_among_the_positions_of_the_model(shop):
    rows = [{"prompt": "1=", "response": "1" * 254}]
    given = f"dataset.optimization_data={write_json(shop.folder / 'just_too_long.json', rows)}"
    with pytest.raises(ValueError, match="1 of 1 examples exceed the 256 positions of the model.*has 2 . 255 tokens"):
        sft.run(load_config(shop.arguments(SFT, given)))
