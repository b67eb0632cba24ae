"""YAML and command line -> config: what is accepted, what is refused, and how it is said."""

import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError, is_dataclass
from pathlib import Path

import pytest

from configs import load_config, resolved, schema
from configs.load import REPOSITORY, find, flat_fields, merge
from configs.schema import Config
from configs.spellings import RETIRED

KEYS = dict(flat_fields())


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def load(path, *arguments):
    return load_config([f"config={path}", *arguments])


def get(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def test_yaml_over_defaults_and_words_over_yaml(file):
    path = file("training: {eps: 0.3, beta: 0.5}\nexperiment: {project: mine}\n")
    config = load(path, "training.beta=0.7", "rollout.top_k=[0,1]", "training.beta=0.9")
    assert (config.training.eps, config.training.beta, config.experiment.project) == (0.3, 0.9, "mine")
    assert config.rollout.top_k == [0, 1] and config.training.shrink == Config().training.shrink


def test_every_key_can_be_given_on_the_command_line(file):
    def other(item, default):
        """A value that is not the default."""
        if item.metadata["choices"]:
            choice = next(choice for choice in item.metadata["choices"] if choice != default)
            return f"[{choice}]" if isinstance(default, list) else choice
        if item.metadata["names"]:
            return next(name for name in item.metadata["names"] if name != default)
        if item.metadata["each"] is str:
            return "sequential"
        if default is None and item.metadata["high"] is not None:
            return str(item.metadata["high"])
        kinds = {"list[int]": "[3]", "list": "[end]", "dict[str, float]": "{digits: 0.5}", "dict": "{question: q}"}
        by_kind = next((text for kind, text in kinds.items() if str(item.type).startswith(kind)), "3")
        number = str(max(0.75 if default == 0.5 else 0.5, item.metadata["low"] or 0.0))
        return {bool: str(not default).lower(), float: number}.get(type(default), by_kind)

    free = [key for key, item in KEYS.items() if key != "config" and len(item.metadata["choices"] or "ab") > 1]
    defaults = {key: get(Config(), key) for key in free}
    config = load(file(""), *(f"{key}={other(KEYS[key], default)}" for key, default in defaults.items()))
    assert [key for key, default in defaults.items() if get(config, key) == default] == []


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "0.000001", "1E-6", "'1e-6'"])
def test_numbers_with_an_exponent_are_numbers(file, text):
    """YAML 1.1 reads 1e-6 as a string."""
    assert load(file(f"optimizer: {{params: {{learning_rate: {text}}}}}")).optimizer.params.learning_rate == 1e-6
    assert load(file(""), f"optimizer.params.learning_rate={text}").optimizer.params.learning_rate == 1e-6


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.epss", "training.eps"),
        ("training.gradient_acumulation_steps", "training.gradient_accumulation_steps"),
        ("rollout.temprature", "rollout.temperature"),
        ("experiment.total_steps", "experiment.total_step"),
        ("experimnt.total_step", "experiment.total_step"),
        ("lr_scheduler.params.warmup_step", "lr_scheduler.params.warmup_steps"),
        ("optimizer.learning_rate", "optimizer.params.learning_rate"),
        ("model.pretrained", "model.pretrained_model"),
        ("dryrun", "dry_run"),
        ("eval.temperature", "evaluation.temperature"),
    ],
)
def test_an_unknown_key_suggests_the_one_meant(file, key, meant):
    *sections, last = key.split(".")
    yaml = f"{last}: 1"
    for section in reversed(sections):
        yaml = f"{section}: {{{yaml}}}"
    for path, arguments in ((file(yaml), []), (None, [f"{key}=1"])):
        path = path if path and not arguments else file("")
        if not arguments:
            path = file(yaml)
        with pytest.raises(ValueError) as error:
            load(path, *arguments)
        assert repr(key) in str(error.value) and f"Did you mean {meant!r}?" in str(error.value)
        assert ("the command line" if arguments else str(path)) in str(error.value)


def test_a_key_of_another_section_suggests_those_of_its_name(file):
    with pytest.raises(ValueError, match="Did you mean 'dataset.seed' or 'training.seed'\\?"):
        load(file("experiment: {seed: 1}"))


def test_a_key_far_from_every_other_has_no_suggestion(file):
    with pytest.raises(ValueError, match="unknown key 'zzz.qqqq'") as error:
        load(file("zzz: {qqqq: 1}"))
    assert "Did you mean" not in str(error.value) and "--help" in str(error.value)


@pytest.mark.parametrize(
    "word",
    [
        "training.eps=abc",
        "training.eps=",
        "training.shrink=1.5",
        "training.seed=true",
        "training.post_num=none",
        "rollout.max_token=many",
        "experiment.overwrite=maybe",
        "dataset.columns=5",
        "tracking.report_to=wandb",
        "rollout.block_size=four",
        "rollout.block_size=1.5",
        "rollout.block_size=[4,2.5]",
        "rollout.top_k=[0,a]",
        "rollout.top_k=null",
        "rollout.remasking_strategy=null",
        "evaluation.remasking_strategy=[low_confidence_static,null]",
        "rollout.stop_token_list=end",
        "model.pretrained_model=",
    ],
)
def test_a_wrong_type_names_the_key(file, word):
    with pytest.raises(ValueError) as error:
        load(file(""), word)
    key, value = word.split("=")
    assert str(error.value).startswith(f"{key} is ") and ("must be" in str(error.value) or "choose" in str(error.value))
    assert value in str(error.value).replace("'", "").replace("None", "null").replace("True", "true") or "[" in value


@pytest.mark.parametrize(
    "word",
    [
        "training.eps=-0.1",
        "training.eps=nan",
        "training.eps=inf",
        "optimizer.params.learning_rate=inf",
        "training.upper_p=1.1",
        "training.batch_size_lm=0",
        "training.gradient_accumulation_steps=0",
        "experiment.total_step=0",
        "rollout.num_response_per_task=0",
        "rollout.top_p=0",
        "rollout.top_p=1.01",
        "rollout.block_size=0",
        "evaluation.block_size=[4,0]",
        "rollout.temperature=-1",
        "rollout.dynamic_threshold=2",
        "lr_scheduler.params.min_lr_scale=1.5",
        "experiment.threads=-1",
    ],
)
def test_an_impossible_value_names_key_value_and_range(file, word):
    key, value = word.split("=")
    with pytest.raises(ValueError) as error:
        load(file(""), word)
    assert key in str(error.value) and any(text in str(error.value) for text in ("at least", "between", "finite"))
    assert value.strip("[]").split(",")[-1] in str(error.value)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("training.normalization=constnt", "constant"),
        ("rollout.cache=prefx", "prefix"),
        ("evaluation.confidence=untemperred", "untempered"),
        ("training.kl_to=referense", "reference"),
        ("dataset.data_type=maths", "math"),
        ("lr_scheduler.scheduler=cosin", "cosine"),
    ],
)
def test_a_name_that_is_no_choice_suggests_one(file, word, hint):
    with pytest.raises(ValueError) as error:
        load(file(""), word)
    assert f"Did you mean {hint!r}?" in str(error.value) and word.split("=")[0] in str(error.value)


@pytest.mark.parametrize("section", ["rollout", "evaluation"])
@pytest.mark.parametrize("lists", ["top_k: [0, 1], block_size: [4, 8, 2]", "top_k: []"])
def test_parallel_lists_go_together(file, section, lists):
    with pytest.raises(ValueError, match=f"^{section}: lists .* of one length"):
        load(file(f"{section}: {{{lists}}}"))


@pytest.mark.parametrize("section", ["rollout", "evaluation"])
@pytest.mark.parametrize("block_size", ["4", "[32, 4]"])
def test_fewer_steps_than_blocks(file, section, block_size):
    with pytest.raises(ValueError, match=f"^{section}.steps=15 are fewer than the 16 blocks of 4 tokens in 61"):
        load(file(f"{section}: {{steps: 15, max_gen_length: 61, block_size: {block_size}}}"))
    assert load(file(f"{section}: {{steps: 16, max_gen_length: 61, block_size: {block_size}}}"))


def test_parallel_lists_of_one_length_load(file):
    config = load(file("evaluation: {top_k: [0, 1], remasking_strategy: [sequential, low_confidence_static]}"))
    assert config.evaluation.top_k == [0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("training: {eps: 0.1\n", "not valid YAML"),
        ("training:\n  eps: 0.1\n  eps: 0.2\n", "duplicate key"),
        ("training: {}\ntraining: {eps: 0.2}\n", "duplicate key"),
        ("- a\n- b\n", "no mapping"),
        ("just words\n", "unknown key 'just words'"),
        ("training.eps\n", "'training.eps' in"),
        ("5: x\n", "unknown key '5'"),
        ("on: x\n", "unknown key 'on'"),
        ("1e3: x\n", "unknown key '1e3'"),
        ("null: x\n", "Incompatible key type 'NoneType'"),
        ("rollout: {5: x}\n", "unknown key 'rollout.5'"),
        ("rollout: {on: {x: 1}}\n", "unknown key 'rollout.on.x'"),
        ("? [a]\n: 3\n", "not valid YAML"),
        ("experiment.project: x\n", "sections of a file are mappings: write experiment: {project: ...}."),
        ("lr_scheduler: {params.warmup_steps: 3}\n", "'lr_scheduler.params.warmup_steps' in"),
        ("rollout.max_token: 5\n", "write rollout: {max_token: ...}."),
        ("rollout: &r {temperature: 1.0}\nreward: {<<: *r}\n", "unknown key 'reward.temperature'"),
        ("trainin:\n", "unknown key 'trainin'"),
        ("training:\n  eps: ${nowhere}\n", "nowhere"),
        ("training: 5\n", "is a section: set keys in it, as in training.KEY=value"),
        ("training: 0\n", "is a section"),
        ("training:\n\teps: 0.1\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_named(file, text, says):
    path = file(text)
    with pytest.raises(ValueError) as error:
        load(path)
    assert says in str(error.value)


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="run.yaml is not valid YAML"):
        load(path)


@pytest.mark.parametrize("text", ["", "# nothing\n", "training:\nrollout:\nwandb:\n", "optimizer:\n  params:\n", "{}"])
def test_empty_files_and_sections_are_the_defaults(file, text):
    path = file(text)
    assert resolved(load(path)) == resolved(Config())


def test_a_missing_file_suggests_a_shipped_one():
    with pytest.raises(ValueError, match="does not exist.*configs/rl_tiny.yaml"):
        load("configs/rl_tinny.yaml")
    with pytest.raises(ValueError, match="no config=.*rl_tiny.yaml"):
        load_config([])
    with pytest.raises(ValueError, match="no config="):
        load_config(["config=", "training.eps=1"])


def test_a_word_without_an_equals_sign():
    with pytest.raises(ValueError, match="'overwrite' is not of the form key=value"):
        load_config(["config=configs/rl_tiny.yaml", "overwrite"])


def test_paths_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("configs/rl_tiny.yaml").experiment.project.startswith("rl_tiny")
    assert find("data") == REPOSITORY / "data"
    Path("data").mkdir()
    assert find("data") == Path("data")
    assert find("nowhere/at/all") == Path("nowhere/at/all")


def test_top_level_model_and_model_base_of_eval_files(file):
    config = load(file("model: /a/b\nmodel_base: trado\n"))
    assert (config.model.pretrained_model, config.model.model_base) == ("/a/b", "trado")
    assert load(file("model: /a/b\n"), "model=/c").model.pretrained_model == "/c"
    assert load(file("model: {pretrained_model: /a}\n"), "model_base=sdar").model.model_base == "sdar"


def test_dllm_rls_name_of_the_policys_rate(file):
    config = load(file("optimizer: {params: {policy_learning_rate: 2e-6, value_learning_rate: 3e-6}}"))
    assert (config.optimizer.params.learning_rate, config.optimizer.params.value_learning_rate) == (2e-6, 3e-6)
    config = load(file(""), "optimizer.params.policy_learning_rate=4e-6")
    assert config.optimizer.params.learning_rate == 4e-6


def test_an_unquoted_no_is_a_precision(file):
    assert load(file("training: {mixed_precision: no}")).training.mixed_precision == "no"


@pytest.mark.parametrize("key", RETIRED)
def test_a_retired_key_loads_with_a_warning_by_name(file, key):
    with pytest.warns(UserWarning, match=f"^{key} in the command line has no effect") as caught:
        config = load(file(""), f"{key}=7")
    assert len(caught) == 1 and resolved(config) == resolved(Config())


def test_nothing_is_warned_about_without_a_reason(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(file("training: {eps: 0.1}"))


def test_values_may_refer_to_others(file):
    config = load(file("experiment:\n  project: run-${training.seed}\n"), "training.seed=5")
    assert config.experiment.project == "run-5"


def test_what_is_resolved_loads_again(file):
    """config.yaml of a run folder can be given as config=: it says the same."""
    from omegaconf import OmegaConf

    first = load(file("experiment: {project: 'a: b'}\ndataset: {columns: {question: problem}}"), "rollout.top_k=[0,1]")
    again = merge(resolved(load(file(OmegaConf.to_yaml(resolved(first))))))
    assert resolved(again) == resolved(first)


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as exit_:
        load_config(["config=nowhere.yaml", "--help"])
    text = capsys.readouterr().out
    assert exit_.value.code in (0, None)
    for key, item in KEYS.items():
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [key])
        assert item.metadata["help"] in line
        for choice in item.metadata["choices"] or ():
            assert choice in line


def test_configs_need_no_torch():
    """--help and errors come at once: the config room is importable without torch and transformers."""
    code = "import sys; from configs import load_config; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_dllm_rls_judge_keys_are_read(tmp_path):
    lengths = "reward_chunk_length: 100, max_model_len: 900, max_generation_token: 90"
    text = f"rollout: {{reward_model: {{{lengths}, k_sample: 5, temperature: 0.1}}}}"
    (tmp_path / "old.yaml").write_text(f"model: {{process_reward_model: /judge}}\n{text}")
    judge = load_config([f"config={tmp_path}/old.yaml"]).judge
    assert (judge.local, judge.mode, judge.chunk_tokens, judge.samples) == ("/judge", "process", 100, 5)
    assert (judge.max_model_len, judge.max_tokens, judge.temperature) == (900, 90, 0.1)
    arguments = ["judge.mode=score", "judge.samples=2", "rollout.reward_model.temperature=0.7"]
    judge = load_config([f"config={tmp_path}/old.yaml", *arguments]).judge
    assert (judge.mode, judge.samples, judge.temperature) == ("score", 2, 0.7)
    (tmp_path / "none.yaml").write_text('model: {process_reward_model: ""}\nrollout: {reward_model: null}')
    judge = load_config([f"config={tmp_path}/none.yaml"]).judge
    assert (judge.local, judge.mode) == (None, "score")
    with pytest.raises(ValueError, match="k_sample and judge.samples are both in the command line"):
        load_config([f"config={tmp_path}/old.yaml", "judge.samples=2", "rollout.reward_model.k_sample=2"])
    with pytest.raises(ValueError, match="unknown key 'rollout.reward_model.k_samples'"):
        load_config([f"config={tmp_path}/old.yaml", "rollout.reward_model.k_samples=2"])


def test_a_file_may_begin_from_another(tmp_path):
    (tmp_path / "a.yaml").write_text("training: {eps: 0.3, beta: 0.5}\nexperiment: {project: a}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\ntraining: {beta: 0.6}\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\nexperiment: {project: c}\n")
    config = load_config([f"config={tmp_path / 'c.yaml'}", "training.shrink=2"])
    assert (config.training.eps, config.training.beta, config.training.shrink) == (0.3, 0.6, 2)
    assert config.experiment.project == "c"


@pytest.mark.parametrize(("text", "says"), [("base: absent.yaml", "does not exist"), ("base: x.yaml", "above it")])
def test_a_base_that_cannot_be_is_named(tmp_path, text, says):
    (tmp_path / "x.yaml").write_text("base: y.yaml\n")
    (tmp_path / "y.yaml").write_text(f"{text}\n")
    with pytest.raises(ValueError, match=f"y.yaml: base: .*{says}"):
        load_config([f"config={tmp_path / 'x.yaml'}"])


def test_a_mistake_in_a_base_names_the_base(tmp_path):
    (tmp_path / "a.yaml").write_text("training: {epps: 0.3}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ValueError, match=r"training.epps.*a\.yaml.*training.eps"):
        load_config([f"config={tmp_path / 'b.yaml'}"])


def test_a_loaded_config_is_frozen():
    config = merge({"training": {"eps": 0.3}})
    for section, name in ((config, "dry_run"), (config.training, "eps"), (config.optimizer.params, "beta1")):
        with pytest.raises(FrozenInstanceError):
            setattr(section, name, 0)
    assert merge({"training": {"eps": 0.1}}).training.eps == 0.1 and config.training.eps == 0.3


def test_every_section_of_the_schema_is_frozen():
    kinds = [kind for kind in vars(schema).values() if isinstance(kind, type) and is_dataclass(kind)]
    assert len(kinds) > 10 and all(kind.__dataclass_params__.frozen for kind in kinds)


def test_a_file_that_is_one_number_is_no_mapping(tmp_path):
    (tmp_path / "five.yaml").write_text("5\n")
    with pytest.raises(ValueError, match="five.yaml holds no mapping of sections"):
        load_config([f"config={tmp_path}/five.yaml"])


def test_a_seed_is_a_64_bit_number():
    with pytest.raises(ValueError, match=r"training.seed is 1e\+23|training.seed is 9999"):
        merge({"training": {"seed": 99999999999999999999999}})
