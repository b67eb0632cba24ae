"""What is typed on the command line: text stays text, and a command refuses the keys of another."""

import warnings

import pytest
from omegaconf import OmegaConf

from configs import load_config, merge
from configs.commands import NOT_READ, reads
from configs.effects import MEANINGS, effect_of
from configs.load import REPOSITORY, RUN_HEADER, flat_fields, help_text, resolved
from configs.tree import get


def load(*arguments, command=None):
    return load_config(["config=configs/rl_tiny.yaml", *arguments], command=command)


TEXTS = [
    "007",
    "1e3",
    "yes",
    "on",
    "12:30:00",
    "0x1F",
    "1_000",
    "a: b",
    "- x",
    "[INST] x",
    "{x}",
    "@x",
    '"unclosed',
    "#1",
    "a #b",
]


@pytest.mark.parametrize(
    "text", [*TEXTS, "null and void", "%d", "!x", "&a *b", "`", "${nothing", "\\n", "é\u3000", " x "]
)
def test_text_stays_as_typed(text):
    assert load(f"experiment.project={text}").experiment.project == text


@pytest.mark.parametrize(
    "text", ["{{problem}} =", "Q: {{problem}}\\nA:", "[INST] {{problem}} [/INST]", "{{problem}}", "'{{problem}}"]
)
def test_a_template_stays_as_typed(text):
    assert load(f"dataset.template={text}").dataset.template == text


def test_quotes_around_a_text_are_taken_off():
    assert load("experiment.project='007'").experiment.project == "007"
    assert load('dataset.template="Q: {{problem}}"').dataset.template == "Q: {{problem}}"


def test_references_in_a_text_are_resolved():
    assert load("experiment.project=x-${training.seed}", "training.seed=7").experiment.project == "x-7"
    with pytest.raises(ValueError, match="nowhere.*experiment.project"):
        load("experiment.project=${nowhere}")


def test_a_template_is_read_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("Q: {{problem}}\nA:")
    monkeypatch.chdir(tmp_path)
    assert load("dataset.template=@mine.txt").dataset.template == "Q: {{problem}}\nA:"
    with pytest.raises(ValueError, match=r"dataset.template=@none.txt: none.txt cannot be read \(No such file"):
        load("dataset.template=@none.txt")


def test_a_system_prompt_has_not_the_last_newline_of_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("Be brief.\n\n")
    assert load("dataset.system=@mine.txt").dataset.system == "Be brief.\n"
    assert load("dataset.system='Be brief.'").dataset.system == "Be brief."


@pytest.mark.parametrize("value", ["[1,", "{a: ", '"', "a: b: c", "${", "@x", "%x"])
def test_what_is_no_value_is_named_with_its_key(value):
    with pytest.raises(ValueError, match=r"training.seed"):
        load(f"training.seed={value}")


def test_numbers_lists_and_mappings_are_yaml():
    config = load(
        "training.seed=1_0",
        "rollout.steps_per_block=4",
        "evaluation.top_k=[0, 1]",
        "dataset.columns={a: b}",
        "model.prepare_with=null",
    )
    assert (config.training.seed, config.evaluation.top_k, config.dataset.columns) == (10, [0, 1], {"a": "b"})
    assert config.model.prepare_with is None
    config = load("dataset.columns.question=007", "training.objective_params.alpha=0.5")
    assert config.dataset.columns == {"question": "007"} and config.training.objective_params == {"alpha": 0.5}


def test_a_list_of_names_or_one_name():
    assert load("evaluation.strategy=[sequential, low_confidence_static]").evaluation.strategy == [
        "sequential",
        "low_confidence_static",
    ]
    assert load("rollout.strategy=sequential").rollout.strategy == "sequential"


def test_a_value_below_a_value_is_an_error():
    with pytest.raises(ValueError, match="experiment"):
        load("experiment.project=a", "experiment.project.x=b")


def test_unquoted_texts_of_a_yaml_stay_as_written(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "experiment: {project: 007, output_dir: on}\ntraining: {mixed_precision: no}\nmodel: 1e3\n"
    )
    config = load_config([f"config={tmp_path / 'mine.yaml'}"])
    assert (config.experiment.project, config.experiment.output_dir) == ("007", "on")
    assert (config.training.mixed_precision, config.model.pretrained_model) == ("no", "1e3")


def test_merge_keys_of_a_yaml_are_resolved(tmp_path):
    """One mapping or a list of them, whose texts stay as written too; the section's own keys win."""
    (tmp_path / "mine.yaml").write_text(
        "rollout: &r {temperature: 0.5, top_p: 0.25, stop_token_list: [on]}\n"
        "evaluation: {<<: *r, top_p: 0.75, eval_dataset: 007}\n"
        "experiment: &e {project: 007}\ndataset: {<<: [{folder: 1_0}, {folder: 2, template: yes}]}\n"
    )
    config = load_config([f"config={tmp_path / 'mine.yaml'}"])
    evaluation, dataset = config.evaluation, config.dataset
    assert (evaluation.temperature, evaluation.top_p, evaluation.stop_token_list) == (0.5, 0.75, ["on"])
    assert (evaluation.eval_dataset, dataset.folder, dataset.template) == ("007", "1_0", "yes")
    assert config.experiment.project == "007" and config.rollout.top_p == 0.25


def test_names_and_list_entries_of_a_yaml_stay_as_written(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "dataset: {columns: {5: x, on: off, 1e3: 1e3, a.b: y}}\nrollout: {stop_token_list: [on, 5, 1e3]}\n"
        "training: {objective_params: {no: 3, x: on}, seed: &s 017}\nexperiment: {project: *s}\n"
    )
    config = load_config([f"config={tmp_path / 'mine.yaml'}"])
    assert config.dataset.columns == {"5": "x", "on": "off", "1e3": "1e3", "a.b": "y"}
    assert config.rollout.stop_token_list == ["on", "5", "1e3"]
    assert config.training.objective_params == {"no": 3, "x": True}
    assert (config.training.seed, config.experiment.project) == (15, "017")


OF_OTHERS = [
    ("sft", "evaluation.eval_dataset=/nope", "evaluation.eval_dataset: train/sft.py does not read this key; rl.py"),
    ("sft", "reward.function=/nope.py:x", "reward.function: train/sft.py does not read"),
    ("sft", "rollout.max_token=5", "rollout.max_token: train/sft.py does not read"),
    ("eval", "evaluation.max_new_tokens=5", "evaluation.max_new_tokens: eval.py does not read this key; rl.py does."),
    ("eval", "training.objective_params.alpha=1", "training.objective_params: eval.py does not read"),
    ("rl", "training.max_steps=5", "training.max_steps: rl.py does not read this key; train/sft.py does."),
    ("eval", "training.lower_p=0.1", "this key; rl.py and train/sft.py do."),
    ("rl", "dataset.optimization_data=x", "dataset.optimization_data: rl.py does not read this key; train/sft.py"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "argument", "says"), OF_OTHERS)
def test_an_argument_of_another_command_is_refused(command, argument, says):
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        load(argument, command=command)


def test_keys_of_another_command_in_a_yaml_are_named_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("reward: {workers: 2}\nevaluation: {max_token: 5}\ntraining: {method: semi-ar}\n")
    with pytest.warns(UserWarning) as found:
        load_config([f"config={path}"], command="sft")
    (only,) = found
    assert (
        str(only.message) == f"{path} sets keys that train/sft.py does not read: reward.workers, evaluation.max_token"
    )


def command_of(name):
    return "sft" if name.startswith("sft") else "eval" if name.endswith("eval") else "rl"


@pytest.mark.slow
def test_no_shipped_yaml_sets_what_its_command_does_not_read():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in sorted((REPOSITORY / "configs").glob("*.yaml")):
            load_config([f"config={path}"], command=command_of(path.stem))


def test_the_config_of_a_run_which_has_every_key_is_read_without_a_warning(tmp_path):
    text = OmegaConf.to_yaml(resolved(merge())).replace("method: TraceRL", "method: semi-ar")
    (tmp_path / "config.yaml").write_text(RUN_HEADER + text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_config([f"config={tmp_path}/config.yaml"], command="sft")


def test_help_lists_the_commands_own_keys():
    text = help_text("usage", "sft")
    assert "\n  training.num_train_epochs" in text and "\n  rollout." not in text and "\n  evaluation." not in text
    assert "rollout.temperature" in help_text("usage", "eval")


def test_every_key_has_one_mark_of_what_it_changes_and_help_shows_it():
    """Those that leave the result are listed: a key is moved here on purpose."""
    marks = {name: effect_of(name) for name, _ in flat_fields()}
    assert set(marks.values()) == set(MEANINGS)
    by_mark = {mark: {name for name, its in marks.items() if its == mark} for mark in MEANINGS}
    stopping = {f"experiment.early_stopping{what}" for what in ("", "_metric", "_gain")}
    assert by_mark["length"] == {"experiment.total_step", "training.max_steps"} | stopping
    assert by_mark["output"] == {
        *("config", "dry_run", "model.prepare_with", "rollout.output_unmasking_history", "tracking.report_to"),
        *(
            "tracking.sample_every",
            "tracking.profile_steps",
            "dataset.source_column",
            "dataset.validation_dataset",
            "dataset.sample_with",
        ),
        *(f"experiment.{name}" for name in ("project", "output_dir", "overwrite", "resume", "keep_last", "keep_best")),
        *(f"experiment.{name}" for name in ("save_every", "save_every_updates", "eval_every", "eval_first")),
        *("training.max_skipped_updates", "experiment.save_dtype"),
    }
    assert by_mark["speed"] == {
        *(f"experiment.{name}" for name in ("threads", "processes", "deepspeed_file", "gpu_memory_gib", "num_node")),
        *(f"experiment.{name}" for name in ("launcher", "join_seconds", "ssh", "ssh_user", "timeout_minutes")),
        *(
            "rollout.graphs",
            "evaluation.graphs",
            "rollout.attention",
            "evaluation.attention",
            "rollout.max_slots",
            "rollout.tensor_parallel_size",
            "evaluation.max_slots",
            "training.max_tokens_per_microbatch",
            "execute.num_chunk",
        ),
        *("training.gradient_checkpointing_enable", "reward.workers", "reward.function_timeout_seconds"),
        *(f"judge.{name}" for name in ("api", "api_key_variable", "parallel", "timeout_seconds", "attempts")),
    }
    assert effect_of("training.num_train_epochs", "sft") == "length" and effect_of("no.key") == "result"
    lines = {words[0]: words for line in help_text("usage").splitlines() if len(words := line.split()) > 3}
    assert all(marks[name] in lines[name] for name in marks)


def test_every_name_on_the_list_is_in_the_schema_and_every_key_has_a_reader():
    known = [name for name, _ in flat_fields()]
    for names in NOT_READ.values():
        assert all(any(key == name or key.startswith(f"{name}.") for key in known) for name in names)
    assert all(any(reads(command, key) for command in NOT_READ) for key in known)
    assert get(merge(), "training.seed") == 10086
