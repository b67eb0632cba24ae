"""Training on several data sets: RL and SFT, resumed, with figures of each."""

import pytest
from end_to_end import RL, SFT, read_jsonl, without_clock, write_json, write_tasks

from configs import load_config
from train import rl, sft

NO_EVALUATION = "evaluation.eval_dataset=''"


def weights_of(folder):
    return (folder / "ckpt" / "optimized" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_rl_on_two_sets_draws_and_grades_each_by_its_own_and_resumes(shop):
    other = [{"problem": f"{i}=", "ground_truth_answer": str(i)} for i in range(3)]
    path = write_json(shop.folder / "other.json", other)
    own = f"{{name: {path},weight: 3,reward: '{shop.reward}:always_one',columns: {{question: problem}}}}"
    typed = [f"dataset.train_dataset=[{{name: {shop.tasks},weight: 1}},{own}]", NO_EVALUATION]

    def run(project, steps):
        arguments = shop.arguments(RL, *typed, f"experiment.project={project}", f"experiment.total_step={steps}")
        rl.run(load_config(arguments, command="rl"))
        return shop.runs / project

    whole = run("whole", 3)
    run("parts", 1)
    parts = run("parts", 3)
    rows = read_jsonl(whole / "metrics.jsonl")
    assert without_clock(rows) == without_clock(read_jsonl(parts / "metrics.jsonl"))
    assert weights_of(whole) == weights_of(parts)
    assert all(row["responses(other)"] == 12.0 and row["responses(tasks)"] == 4.0 for row in rows)
    assert all(row["accuracy(other)"] == row["reward/mean(other)"] == 1.0 > row["reward/mean(tasks)"] for row in rows)
    rollouts = read_jsonl(whole / "rollouts.jsonl")
    assert {row["task"].split("/")[0] for row in rollouts} == {row["set"] for row in rollouts} == {"tasks", "other"}
    changed = [argument.replace("weight: 3", "weight: 2") for argument in shop.arguments(RL, *typed)]
    with pytest.raises(ValueError, match="dataset.train_dataset"):
        rl.run(load_config([*changed, "experiment.project=parts", "experiment.total_step=3"], command="rl"))


@pytest.mark.slow
def test_sft_on_two_sets_weighs_them_and_resumes_within_a_pass(shop):
    more = write_json(
        shop.folder / "more.json", [{"prompt": "9=", "response": "\\boxed{9}"}, {"prompt": "8=", "response": "8"}]
    )
    typed = [f"dataset.optimization_data=[{{name: {shop.pairs},weight: 1}},{{name: {more},weight: 3}}]"]

    def run(project, updates):
        arguments = [f"experiment.project={project}", f"training.max_steps={updates}"]
        sft.run(load_config(shop.arguments(SFT, *typed, *arguments), command="sft"))
        return shop.runs / project

    whole = run("whole", 5)
    run("parts", 3)
    parts = run("parts", 5)
    rows = read_jsonl(whole / "metrics.jsonl")
    assert without_clock(rows) == without_clock(read_jsonl(parts / "metrics.jsonl"))
    assert weights_of(whole) == weights_of(parts)
    for row in rows:
        tokens = row["trained_tokens(pairs)"] + row["trained_tokens(more)"]
        nll = (
            row["nll(pairs)"] * row["trained_tokens(pairs)"] + row["nll(more)"] * row["trained_tokens(more)"]
        ) / tokens
        assert row["trained_tokens"] == tokens and row["nll"] == pytest.approx(nll, abs=1e-5)


@pytest.mark.slow
def test_rl_on_chats_and_a_csv_file_with_a_system_prompt_and_examples(shop, capsys):
    """A set of chats and a CSV file, each question after a system prompt from a file and an example."""
    chats = [{"prompt": [{"role": "user", "content": f"{i}="}]} for i in range(3)]
    path = write_json(shop.folder / "chats.json", chats)
    (shop.folder / "rows.csv").write_text("question\n12=\n21=\n")
    (shop.folder / "system.txt").write_text("12")
    write_json(shop.folder / "shots.json", [{"question": "3=", "answer": "4"}])
    typed = [
        f"dataset.train_dataset=[{path},rows]",
        f"dataset.system=@{shop.folder}/system.txt",
        "dataset.few_shot=shots.json",
        "dataset.template=auto",
        "training.max_prompt_len=200",
        "experiment.total_step=1",
    ]
    rl.run(load_config(shop.arguments(RL, *typed, NO_EVALUATION), command="rl"))
    rows = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    assert {row["set"] for row in rows} == {"chats", "rows"}
    start = "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n"
        for role, text in [("system", "12"), ("user", "3="), ("assistant", "4")]
    )
    assert all(row["prompt"].startswith(f"{start}<|im_start|>user\n") for row in rows)


def test_keys_of_prompts_that_cannot_be_are_named(shop):
    for typed, says in (
        ("dataset.system=x", "dataset.template=plain: there is no place for dataset.system in it"),
        ("dataset.system=@/nope", "dataset.system=@/nope: /nope cannot be read"),
        ("dataset.few_shot=nope", "dataset.few_shot: no data set 'nope'"),
        ("dataset.few_shot=[{question: 1}]", "dataset.few_shot has an entry without question"),
        ("dataset.few_shot=[{question: '1'}]", "dataset.few_shot: an example: field 'answer' is missing"),
    ):
        with pytest.raises(ValueError, match=says):
            rl.run(load_config(shop.arguments(RL, typed), command="rl"))


def test_a_set_that_is_not_there_is_named_before_a_model_is_loaded(shop):
    for text, key, command, run in (
        (RL, "dataset.train_dataset", "rl", rl.run),
        (SFT, "dataset.optimization_data", "sft", sft.run),
    ):
        there = shop.tasks if command == "rl" else shop.pairs
        with pytest.raises(ValueError, match=f"{key}: no data set '/nope.json'"):
            run(load_config(shop.arguments(text, f"{key}=[{there},/nope.json]"), command=command))


def test_two_sets_without_weights_are_planned_as_one(shop, capsys):
    other = write_tasks(shop.folder / "other.json", 4)
    rl.run(
        load_config(shop.arguments(RL, f"dataset.train_dataset=[{shop.tasks},{other}]", "dry_run=true"), command="rl")
    )
    assert "16 tasks" in capsys.readouterr().out


@pytest.mark.slow
def test_a_set_whose_own_reward_cannot_be_is_named(shop):
    first = f"{{name: {shop.tasks}, reward: nowhere.py:f}}"
    with pytest.raises(ValueError, match=r"^dataset.train_dataset: set .*: reward: no file 'nowhere.py'"):
        rl.run(load_config(shop.arguments(RL, f"dataset.train_dataset=[{first},{shop.test}]", "dry_run=true")))
    shop.reward.write_text(shop.reward.read_text() + "def wants(completions, nothing): pass\n")
    first = f"{{name: {shop.tasks}, reward: '{shop.reward}:wants'}}"
    with pytest.raises(ValueError, match=r"^dataset.train_dataset: set .*: reward function .* asks for \['nothing'\]"):
        rl.run(load_config(shop.arguments(RL, f"dataset.train_dataset=[{first},{shop.test}]", "dry_run=true")))
    with pytest.raises(ValueError, match="does not exist.* the first lines of .* say how"):
        rl.run(load_config(shop.arguments(RL, "model.pretrained_model=a/b/c", "dry_run=true")))
