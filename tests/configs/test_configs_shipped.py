"""Every YAML in configs/, and those that users of dLLM-RL have."""

import itertools
import json
import warnings
from dataclasses import replace

import pytest
from end_to_end import text_checkpoint, write_json, write_tasks
from helpers import GOLDEN, REAL, thinned
from omegaconf import OmegaConf

from configs import load_config
from configs.load import REPOSITORY, flat_fields
from configs.spellings import RENAMED, RETIRED
from configs.tree import get
from models import load_model
from train import evaluation, rl, sft
from train.distributed.kind import engine_kind
from train.setup import models as setup_models
from train.setup.blocks import block_sizes
from train.setup.decodings import sampling_entries

SHIPPED = sorted(path.name for path in (REPOSITORY / "configs").glob("*.yaml"))
INCUMBENT = REAL / "incumbent_configs.json"
CODE = ("dream_eval", "dream_multinode_eval", "rl_sdar_code")
RECIPES = [f"{kind}_{family}" for family in ("sdar", "trado") for kind in ("rl", "sft")]
VALUE_RECIPES = [
    f"rl_{family}{kind}_with_value" for family in ("sdar", "trado") for kind in ("", "_process_reward_rlhf")
]
KINDS = ("", "_with_value", "_process_reward_rlhf_with_value")
SAME_KEYS = [
    *("rl_dream", "rl_llada", "rl_sdar_code", "sft_dream", *RECIPES, *VALUE_RECIPES),
    *("dream_eval", "llada_eval", "sdar_eval", "trado_eval", "trado_longcot_eval"),
    *(f"multinode_rl_{family}" for family in ("dream", "llada", "sdar", "trado")),
    *(f"multinode_{name}" for name in VALUE_RECIPES),
    *(f"{name}_multinode_eval" for name in ("dream", "llada", "sdar", "trado", "trado_longcot")),
]
SEEING = [
    *(
        f"{nodes}rl_{family}{kind}"
        for nodes in ("", "multinode_")
        for family in ("lladav", "mmada_v")
        for kind in KINDS
    ),
    *("lladav_eval", "mmada_v_eval", "sft_lladav", "sft_mmada_v"),
]
"""Recipes with pictures that dLLM-RL has."""
TINY_SEEING = ["rl_tiny_vision", "sft_tiny_vision"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A folder with a checkpoint of each family, with room for the longest answers that are asked for."""
    folder = tmp_path_factory.mktemp("model")
    for family in ("sdar", "dream", "llada", "mmada", "lladav", "diffusion_gemma"):
        positions = "max_sequence_length" if family in ("llada", "mmada") else "max_position_embeddings"
        text_checkpoint(folder / family, family, **{positions: 32768})
    for family in ("sdar_moe", "llada2"):  # heads that a team of four can share
        text_checkpoint(folder / family, family, max_position_embeddings=32768, num_key_value_heads=4)
    return folder


@pytest.fixture(scope="module")
def models(model_folder):
    return {path.name: load_model(path) for path in model_folder.iterdir()}


@pytest.fixture
def no_model_work(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("a dry run must not load a model")

    for name in ("load_model", "load_value_model"):
        monkeypatch.setattr(setup_models, name, refuse)


PAIR = {"prompt": "12=", "response": "21"}
PREFERENCE = {"prompt": "12=", "chosen": "21", "rejected": "12"}
TRACE = {"prompt_ids": [5, 6], "canvas_ids": [7, 2], "canvas_step_map": [1, 1], "canvas_logprobs": [-0.5, -0.5]}
TRACE |= {"num_response_tokens": 2, "num_steps": 1, "reward": 1.0, "finish_reason": "stop"}


def command(name):
    if name.startswith("sft_"):
        return sft.run
    return evaluation.run if name.removesuffix(".yaml").endswith("_eval") else rl.run


def family_of(name):
    known = {"drawing": "mmada", "brackets": "llada", "tiny_vision": "lladav", "30b": "sdar_moe"}
    known |= {family: family for family in ("dream", "lladav", "llada2", "llada", "mmada", "diffusion_gemma")}
    return next((family for word, family in known.items() if word in name), "sdar")


def arguments(name, model_folder, tmp_path):
    """What a user must say: the model, and where the data is."""
    tasks = write_tasks(tmp_path / "tasks.json")
    if name.removesuffix(".yaml") in CODE:
        row = {"question": "12=", "test_method": "function", "test_list": ["assert f(1) == 2"], "test_time_limit": 1}
        tasks = write_json(tmp_path / "code.json", [row])
    family, picture = family_of(name), {}
    if sees := name.removesuffix(".yaml") in (*SEEING, *TINY_SEEING):
        picture = {"image": "a.png"}
        tasks = write_json(tmp_path / "seen.json", [{"question": "12=", "ground_truth_answer": "21", **picture}] * 9)
    row = TRACE if "distill" in name else PREFERENCE if "dpo" in name else PAIR | picture
    pairs = write_json(tmp_path / "pairs.json", [row])
    return [
        *([f"dataset.image_root={tmp_path}"] if sees else []),
        *([f"model.vq_model_path={GOLDEN / 'magvit'}"] if "drawing" in name else []),
        f"model.pretrained_model={model_folder / family}",
        f"dataset.train_dataset={tasks}",
        f"dataset.eval_dataset={tasks}",
        f"dataset.optimization_data={pairs}",
        f"experiment.output_dir={tmp_path / 'runs'}",
        *(["experiment.processes=4"] if "30b" in name or "rl_llada2" in name else []),
        *([f"judge.local={model_folder / family}"] if "process_reward" in name else []),
        *([f"model.value_base_model={model_folder / family}"] if "with_value" in name else []),
        *([f"evaluation.eval_dataset={tasks}"] if "eval" not in name and "sft" not in name else []),
    ]


def test_what_is_shipped():
    assert {"rl_tiny.yaml", "sft_tiny.yaml", "tiny_eval.yaml"} <= set(SHIPPED)
    assert {"rl_trado.yaml", "rl_sdar.yaml", "sft_trado.yaml", "sft_sdar.yaml"} <= set(SHIPPED)
    assert {"rl_trado_with_value.yaml", "rl_sdar_with_value.yaml"} <= set(SHIPPED)
    assert {f"rl_{name}_process_reward_rlhf_with_value.yaml" for name in ("trado", "sdar")} <= set(SHIPPED)
    assert {"trado_eval.yaml", "sdar_eval.yaml", "trado_longcot_eval.yaml"} <= set(SHIPPED)
    for family in ("dream", "llada", "llada2", "mmada"):
        assert {f"{family}_eval.yaml", f"rl_{family}.yaml", f"sft_{family}.yaml"} <= set(SHIPPED)
    assert "rl_sdar_code.yaml" in SHIPPED
    assert {f"{name}.yaml" for name in SEEING} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_loads_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load_config([f"config=configs/{name}"])
    assert config.experiment.project.startswith(name.removesuffix(".yaml"))


def test_no_two_files_say_the_same_at_length():
    """The one that repeats the other names it as its base."""
    files = {name: OmegaConf.load(REPOSITORY / "configs" / name) for name in SHIPPED}
    said = {name: set(_settings(OmegaConf.to_container(file))) for name, file in files.items()}
    for one, other in itertools.combinations(SHIPPED, 2):
        assert len(said[one] & said[other]) < 25, (one, other)


def _settings(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value}"


@pytest.mark.parametrize("name", thinned(SHIPPED, 2))
def test_dry_run(name, model_folder, tmp_path, no_model_work, capsys):
    config = load_config(
        [
            f"config=configs/{name}",
            "dry_run=true",
            "execute.allow_unsafe=true",
            *arguments(name, model_folder, tmp_path),
        ]
    )
    assert command(name)(config) is None
    assert config.experiment.project in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_the_arithmetic(model_folder, tmp_path, no_model_work, capsys):
    config = load_config(["config=configs/rl_sdar.yaml", "dry_run=true", *arguments("rl_sdar", model_folder, tmp_path)])
    rl.run(config)
    text = capsys.readouterr().out
    memory = ("GiB a process (one process)", "weights", "gradients", "micro-batch", "slots", "largest", "host")
    for part in ("64 prompts x 16 = 1024 responses", "up to 2000 tokens", "32 x 1 = 32 rows", *memory):
        assert part in text


def test_a_dry_run_plans_for_machines_that_one_is_not_on(model_folder, tmp_path, no_model_work, capsys):
    words_ = arguments("rl_sdar", model_folder, tmp_path)
    gpus = ["experiment.gpu_memory_gib=80", "experiment.processes=4"]
    rl.run(load_config(["config=configs/rl_sdar.yaml", "dry_run=true", *words_, *gpus]))
    text = capsys.readouterr().out
    assert "32 x 1 x 4 = 128 rows" in text and "(4 processes, FSDP2); 72.00 usable of 80.00 on a GPU" in text
    assert "sampler weights" in text  # bf16, though this CPU may not have it


@pytest.mark.slow
def test_a_dry_run_counts_the_value_model(model_folder, tmp_path, no_model_work, capsys):
    words_ = arguments("rl_trado", model_folder, tmp_path)
    model = model_folder / "sdar"
    for name in ("rl_trado_with_value", "rl_trado"):
        rl.run(load_config([f"config=configs/{name}.yaml", "dry_run=true", *words_]))
    with_value, without = capsys.readouterr().out.split("dry run of rl_trado:")
    assert f"value   {model}, gam 1, lam 1, peak learning rate 5e-06, trained every step" in with_value
    parts = ("value model", "value optimizer", "value update")
    assert all(part in with_value for part in parts) and "value" not in without


@pytest.mark.slow
def test_the_demo_says_that_its_model_is_made_first(tmp_path, no_model_work, capsys):
    arguments = ["dry_run=true", f"experiment.output_dir={tmp_path}", f"dataset.folder={tmp_path}"]
    rl.run(load_config(["config=configs/rl_tiny.yaml", *arguments]))
    assert "configs/sft_tiny.yaml would make it first" in capsys.readouterr().out


@pytest.mark.parametrize("name", thinned(SHIPPED, 9))
@pytest.mark.parametrize("what", ["model.pretrained_model", "data"])
def test_a_missing_path_is_reported_before_any_model_is_loaded(name, what, model_folder, tmp_path, no_model_work):
    if what == "data":
        key = "optimization_data" if "sft" in name else "eval_dataset" if "eval" in name else "train_dataset"
        lost = [f"dataset.{key}={tmp_path}/nowhere.json"]
    else:
        lost = [f"model.pretrained_model={tmp_path}/nowhere", "model.prepare_with=null"]
    config = load_config([f"config=configs/{name}", *arguments(name, model_folder, tmp_path), *lost])
    with pytest.raises(ValueError, match="nowhere"):
        command(name)(config)
    assert not (tmp_path / "runs").exists()


def incumbent():
    if not INCUMBENT.is_file():
        pytest.skip(f"{INCUMBENT} is absent: dLLM-RL's own configs are not part of the repository")
    return json.loads(INCUMBENT.read_text())


def write_incumbent(name, folder):
    """(its settings as a tree, its YAML file)."""
    tree = OmegaConf.create({})
    for key, value in incumbent()[name].items():
        OmegaConf.update(tree, key, value, force_add=True)
    OmegaConf.save(tree, folder / f"{name}.yaml")
    return tree, folder / f"{name}.yaml"


def test_every_config_of_dllm_rl_is_among_those_below():
    """But for the one that is no YAML there."""
    assert sorted([*SAME_KEYS, *SEEING]) == sorted(set(incumbent()) - {"sft_llada"})


@pytest.mark.parametrize("name", [*SAME_KEYS, *SEEING])
def test_a_config_of_dllm_rl_loads_as_it_is(name, tmp_path):
    """What has no effect is warned about by name, each key once; every other value arrives."""
    tree, file = write_incumbent(name, tmp_path)
    settings = incumbent()[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = load_config([f"config={file}"])
    assert sorted(str(w.message).split()[0] for w in caught) == sorted(set(settings) & set(RETIRED))
    moved = RENAMED | {"model": "model.pretrained_model", "model_base": "model.model_base"}
    if settings.pop("evaluation.if_eval", True) is False:
        settings["evaluation.eval_dataset"] = tree.evaluation.eval_dataset = None
    if settings.get("model.process_reward_model") == "":
        settings["model.process_reward_model"] = tree.model.process_reward_model = None
    switches = {
        "use_cache": {True: "prefix", False: "auto"},
        "use_kl_estimator_k3": {True: "k3", False: "k1"},
        "strict_len_check": {True: "wrong", False: "keep"},
    }
    for key in set(settings) - set(RETIRED):
        value = OmegaConf.select(tree, key)
        switch = switches.get(key.split(".")[-1])
        value = switch[value] if switch else value
        got = get(config, moved.get(key, key))
        assert got == (type(got)(value) if isinstance(got, float) else value), key


@pytest.mark.parametrize("name", thinned([*SAME_KEYS, *SEEING], 5))
@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_a_config_of_dllm_rl_passes_the_checks_of_a_run(name, model_folder, tmp_path, no_model_work, capsys):
    _, file = write_incumbent(name, tmp_path)
    said = arguments(name, model_folder, tmp_path)
    if "lladav" in name:  # two of theirs name mmada
        said.append("model.model_base=lladav")
    config = load_config([f"config={file}", "dry_run=true", "execute.allow_unsafe=true", *said])
    if engine_kind(config) in ("zero2", "zero3"):
        pytest.importorskip("deepspeed", reason="the engine's package is not installed")
    assert command(name)(config) is None
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("name", thinned([name for name in [*SAME_KEYS, *SEEING] if "sft" not in name], 3))
@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_a_config_of_dllm_rl_samples_as_it_did(name, models, tmp_path):
    """The first of its entries, and of its evaluation's: window, blocks, steps, cache, filters, slots."""
    tree, file = write_incumbent(name, tmp_path)
    config, model = load_config([f"config={file}"]), models[family_of(name)]
    for section in ("rollout", "evaluation"):
        if section not in tree:
            continue
        given = tree[section]
        decode = replace(getattr(config, section), stop_token_list=None)
        blocks = block_sizes(decode, model.spec, model.block_size)
        entries = list(sampling_entries(decode, model, blocks, seed=0, deterministic=False).values())
        lists = [len(value) for value in given.values() if OmegaConf.is_list(value)]
        assert len(entries) == (lists or [1])[0]
        first = {key: value[0] if OmegaConf.is_list(value) else value for key, value in given.items()}
        got, window = entries[0], first.get("max_gen_length", first.get("max_token"))
        assert (got.max_new_tokens, got.block_size) == (window, first["block_size"])
        assert (got.strategy, got.threshold) == (first["remasking_strategy"], first["dynamic_threshold"])
        assert (got.temperature, got.top_p, got.top_k) == (
            first["temperature"],
            first.get("top_p", 1.0),
            first.get("top_k", 0),
        )
        assert got.max_slots == first.get("max_active", first.get("batch_size"))
        if model.attention == "full":
            assert (got.cache, got.further_horizon, got.target) == ("prefix", first["further_horizon"], first["target"])
            blocks = window // first["block_size"]
            assert (
                list(got.steps_per_block) == [first["steps"] // blocks] * blocks and window % first["block_size"] == 0
            )
        else:
            assert (got.cache, got.steps_per_block) == ("exact", first["denoising_steps_per_block"])


def test_no_retired_or_renamed_key_is_alive():
    known = {name for name, _ in flat_fields()}
    assert not known & (set(RETIRED) | set(RENAMED)) and set(RENAMED.values()) <= known
