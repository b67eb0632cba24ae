"""dLLM-RL's names of keys: what they become, which one counts, and that messages name what was typed."""

import json
import warnings

import pytest
from helpers import thinned
from omegaconf import OmegaConf

from configs import load_config, merge, resolved
from configs.load import REPOSITORY, RUN_HEADER, flat_run, help_text
from configs.schema import Config
from configs.spellings import RENAMED, RETIRED, SIZED_BY_MACHINE
from configs.tree import flat, get, put

BEFORE = json.loads((REPOSITORY / "tests" / "configs" / "shipped_6db0e99.json").read_text())
DEFAULTS = flat(resolved(Config()))
SWITCHES = {
    "use_cache": ("cache", True, "prefix", False, "auto"),
    "use_kl_estimator_k3": ("kl_estimator", True, "k3", False, "k1"),
    "strict_len_check": ("truncated", True, "wrong", False, "keep"),
}
VALUES = {"steps_per_block": 3, "max_new_tokens": 7, "max_slots": 5, "strategy": "sequential", "threshold": 0.25}
VALUES |= {"local": "/judge", "chunk_tokens": 9, "samples": 4, "max_model_len": 900, "max_tokens": 90}
VALUES |= {"temperature": 0.5, "learning_rate": 0.125}
VALUES |= {"vq_model_path": "/vq", "image_resolution": 64, "answer_must_in_box": False, "clip_model": "/clip"}


@pytest.fixture
def load(tmp_path):
    def load(text, *arguments):
        (tmp_path / "run.yaml").write_text(text)
        return load_config([f"config={tmp_path}/run.yaml", *arguments])

    return load


def cases():
    """(old key, its value, new key, its value)."""
    for old, new in RENAMED.items():
        last = old.split(".")[-1]
        if last in SWITCHES:
            _, *pairs = SWITCHES[last]
            yield old, pairs[0], new, pairs[1]
            yield old, pairs[2], new, pairs[3]
        else:
            value = VALUES[new.split(".")[-1]]
            yield old, value, new, value


@pytest.mark.parametrize(("old", "value", "new", "meant"), list(cases()))
def test_every_old_name_is_its_new_one_in_a_file_and_on_the_command_line(load, old, value, new, meant):
    tree = {}
    put(tree, old, value)
    typed = f"{old}={str(value).lower() if isinstance(value, bool) else value}"
    for config in (load(OmegaConf.to_yaml(tree)), load("", typed)):
        assert get(config, new) == meant
        changed = {key for key, value in flat(resolved(config)).items() if value != DEFAULTS[key]}
        assert changed - {"judge.mode"} <= {new}


@pytest.mark.parametrize("old", RENAMED)
def test_old_names_are_spoken_nowhere_but_at_the_door(old):
    assert old not in DEFAULTS
    with pytest.raises(ValueError, match="not in|Key"):
        tree = {}
        put(tree, old, 1)
        merge(tree)


def test_what_is_typed_later_counts_whichever_way_it_is_spelled(load):
    text = "rollout: {max_new_tokens: 10, cache: dual}\nevaluation: {max_gen_length: 20}\n"
    config = load(text, "rollout.max_token=30", "evaluation.max_new_tokens=40", "rollout.use_cache=false")
    assert (config.rollout.max_new_tokens, config.evaluation.max_new_tokens) == (30, 40)
    assert config.rollout.cache == "auto"


def test_a_base_may_have_the_other_spelling(tmp_path):
    (tmp_path / "a.yaml").write_text("rollout: {max_gen_length: 512, batch_size: 3}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nrollout: {max_token: 256}\n")
    rollout = load_config([f"config={tmp_path}/b.yaml"]).rollout
    assert (rollout.max_new_tokens, rollout.max_slots) == (256, 3)
    assert rollout.key("max_new_tokens") == "rollout.max_token" and rollout.key("max_slots") == "rollout.batch_size"


@pytest.mark.parametrize(
    ("section", "one", "other"),
    [
        ("rollout", "max_token: 5", "max_new_tokens: 6"),
        ("evaluation", "max_token: 5", "max_gen_length: 5"),
        ("rollout", "use_cache: true", "cache: none"),
        ("training", "use_kl_estimator_k3: false", "kl_estimator: k3"),
        ("rollout", "max_active: 2", "batch_size: 3"),
    ],
)
def test_both_spellings_in_one_source_are_refused_by_name(load, section, one, other):
    names = "|".join(f"{section}.{text.split(':')[0]}" for text in (one, other))
    with pytest.raises(ValueError, match=f"^({names}) and ({names}) are both in .*run.yaml.*keep one"):
        load(f"{section}: {{{one}, {other}}}")
    arguments = [f"{section}.{text.replace(': ', '=')}" for text in (one, other)]
    with pytest.raises(ValueError, match="are both in the command line"):
        load("", *arguments)


def test_a_null_of_full_attention_says_nothing(load):
    rollout = load("rollout: {max_token: 9, max_gen_length: null, max_active: 4, batch_size: null}").rollout
    assert (rollout.max_new_tokens, rollout.max_slots) == (9, 4)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("rollout.max_token=many", "rollout.max_token is 'many'; it must be of type int"),
        ("rollout.max_gen_length=0", "rollout.max_gen_length is 0; it must be at least 1"),
        ("rollout.use_cache=maybe", "rollout.use_cache is 'maybe'; it must be of type bool"),
        ("rollout.remask_threshold=[0.1,0.2]", "it must be a number or null .*edit_threshold.* take lists"),
        ("rollout.use_cache=2", "rollout.use_cache is 2; it must be of type bool"),
        ("evaluation.dynamic_threshold=2", "evaluation.dynamic_threshold is 2; it must be between 0 and 1"),
        ("evaluation.denoising_steps_per_block=[4,2.5]", "evaluation.denoising_steps_per_block is 2.5"),
        ("rollout.remasking_strategy=null", "rollout.remasking_strategy is None; it must be a name"),
        ("rollout.reward_model.k_sample=0", "rollout.reward_model.k_sample is 0; it must be at least 1"),
        ("evaluation.remasking_strategy=[]", "evaluation: lists .*'evaluation.remasking_strategy': 0"),
        ("rollout.max_token=${nowhere}", "nowhere.* \\(key 'rollout.max_token'\\)"),
    ],
)
def test_a_mistake_is_named_as_it_was_typed(load, argument, says):
    with pytest.raises(ValueError, match=says):
        load("", argument)
    with pytest.raises(ValueError) as new:
        load("rollout: {max_token: 3}", "rollout.max_new_tokens=0")
    assert str(new.value).startswith("rollout.max_new_tokens is 0")


def test_a_misspelled_old_name_suggests_the_old_one(load):
    with pytest.raises(ValueError, match="Did you mean 'rollout.dynamic_threshold'"):
        load("rollout: {dynamic_treshold: 0.9}")
    with pytest.raises(ValueError, match="Did you mean 'rollout.max_new_tokens'"):
        load("rollout: {max_new_token: 9}")


def test_references_to_old_names_and_among_old_names(load, monkeypatch):
    monkeypatch.setenv("CACHED", "true")
    text = "rollout: {max_gen_length: 77, use_cache: true, batch_size: '${.max_gen_length}'}\n"
    text += "training: {max_gen_length: '${rollout.max_gen_length}'}\n"
    text += "evaluation: {use_cache: '${rollout.use_cache}', max_token: '${..rollout.max_gen_length}'}\n"
    config = load(text)
    assert config.training.max_gen_length == config.rollout.max_slots == config.evaluation.max_new_tokens == 77
    assert config.evaluation.cache == "prefix"
    assert load("rollout: {use_cache: '${oc.env:CACHED}'}").rollout.cache == "prefix"
    assert load("", "training.max_gen_length='${rollout.max_token}'").training.max_gen_length == 2000


def of_6db0e99(changes):
    """The config.yaml of a run of that commit: every key, both spellings."""
    tree = resolved(Config())
    for section in ("rollout", "evaluation"):
        decode = tree[section]
        for new in ("max_new_tokens", "max_slots", "strategy", "threshold", "steps_per_block"):
            del decode[new]
        decode |= {"max_token": 2000, "max_gen_length": None, "max_active": 256, "batch_size": None}
        decode |= {"remasking_strategy": "low_confidence_dynamic", "dynamic_threshold": 0.9, "use_cache": False}
        decode |= {"denoising_steps_per_block": None}
    tree["training"] |= {"kl_estimator": None, "use_kl_estimator_k3": True}
    tree["experiment"]["start_from_scratch"] = True
    for key, value in changes.items():
        put(tree, key, value)
    return RUN_HEADER + OmegaConf.to_yaml(tree)


FIT_SINCE = (*SIZED_BY_MACHINE, "experiment.deepspeed_file")
"""What the machine sizes since then, and the engine with which a recipe fits the machine that it names."""
SET_SINCE = ("experiment.save_every_updates", "experiment.keep_last")
"""What recipes of fine-tuning set on purpose since then."""


@pytest.mark.parametrize("name", thinned(BEFORE, 4))
def test_a_shipped_recipe_says_what_it_said_at_6db0e99(name, tmp_path):
    """shipped_6db0e99.json: what each recipe set there beside defaults. Read as the config.yaml of a run of that commit
    (by config=, and by a run's folder that is resumed), it is the recipe of today. A recipe that is changed on purpose
    leaves the list."""
    (tmp_path / "config.yaml").write_text(of_6db0e99(BEFORE[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        there = resolved(load_config([f"config={tmp_path}/config.yaml"]))
    here = resolved(load_config([f"config={REPOSITORY}/configs/{name}.yaml"]))
    for key in (*FIT_SINCE, *(SET_SINCE if name.startswith("sft_") else ())):
        put(here, key, get(there, key))
    assert there == here
    assert flat_run((tmp_path / "config.yaml").read_text(), flat(here)) == flat(here)


def test_of_both_spellings_in_an_old_run_the_one_that_counted_there_counts(tmp_path):
    decode = {"rollout.max_token": 9, "rollout.max_gen_length": 8, "rollout.batch_size": 7, "rollout.use_cache": True}
    decode |= {"rollout.cache": "dual", "evaluation.use_cache": True}
    (tmp_path / "run.yaml").write_text(of_6db0e99(decode | {"training.kl_estimator": "k2"}))
    config = load_config([f"config={tmp_path}/run.yaml", "rollout.max_token=6"])
    assert (config.rollout.max_new_tokens, config.rollout.max_slots, config.rollout.cache) == (6, 7, "dual")
    assert (config.evaluation.max_new_tokens, config.evaluation.cache) == (2000, "prefix")
    assert config.training.kl_estimator == "k2"


def test_a_key_that_an_old_run_could_not_have_has_its_default_there():
    here = {"training.shrink": 1, "training.eps": 0.3, "training.unheard_of": 5}
    there = flat_run("training: {beta: 0.5}\n", here)
    assert there == {"training.beta": 0.5, "training.shrink": 1}


def test_help_lists_new_names_alone():
    lines = help_text("x").splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ") and "." in line.split()[0]]
    assert len(listed) == len(set(listed)) and not set(listed) & (set(RENAMED) | set(RETIRED))
    (line,) = (line for line in lines if line.split()[:1] == ["rollout.top_k"])
    assert "int or list of int" in line


THEIRS = "dataset: {train_dataset: MATH_train, data_type: %s}\nrollout: {max_token: 9}\n"


@pytest.mark.parametrize("key", ["rollout: {max_token: 9}", "experiment: {current_epoch: 1}"])
@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_a_math_yaml_of_dllm_rl_counts_cut_answers_as_wrong(tmp_path, caplog, key):
    file = tmp_path / "theirs.yaml"
    file.write_text(f"dataset: {{train_dataset: MATH_train, data_type: math}}\n{key}")
    assert load_config([f"config={file}"], command="rl").training.truncated == "wrong"
    assert caplog.text.count("count as wrong, as there (training.truncated=wrong") == 1


@pytest.mark.parametrize(
    ("text", "arguments", "command"),
    [
        (THEIRS % "math", ["training.truncated=keep"], "rl"),
        (THEIRS % "math" + "training: {truncated: keep}", [], "rl"),
        (THEIRS % "code", [], "rl"),
        (THEIRS % "math", ["dataset.data_type=general"], "rl"),
        (THEIRS.replace("max_token", "max_new_tokens") % "math", ["rollout.max_token=8"], "rl"),
        (RUN_HEADER + THEIRS % "math", [], "rl"),
        (THEIRS.replace("train_dataset", "eval_dataset") % "math", [], "eval"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not read")
def test_no_other_config_does(tmp_path, caplog, text, arguments, command):
    file = tmp_path / "ours.yaml"
    file.write_text(text)
    assert load_config([f"config={file}", *arguments], command=command).training.truncated == "keep"
    assert "count as wrong" not in caplog.text


def test_an_evaluation_that_is_switched_off_has_no_tasks(load):
    yaml = "evaluation: {eval_dataset: MATH500, if_eval: %s}"
    assert load(yaml % "false").evaluation.eval_dataset is None
    assert load(yaml % "true").evaluation.eval_dataset == "MATH500"
    assert load(yaml % "false", "evaluation.eval_dataset=AIME2024").evaluation.eval_dataset == "AIME2024"
    with pytest.warns(UserWarning, match="evaluation.if_eval has no effect: evaluation.eval_dataset names"):
        assert load(yaml % "false", "evaluation.if_eval=true").evaluation.eval_dataset is None
    with pytest.raises(ValueError, match="evaluation.if_eval is 3; it must be of type bool"):
        load("evaluation: {if_eval: 3}")
