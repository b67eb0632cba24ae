"""Every YAML in configs/, and those that users of dLLM-RL have."""

import json
import warnings

import pytest
from end_to_end import text_checkpoint, write_json, write_tasks
from helpers import REAL
from omegaconf import OmegaConf

from configs import load_config
from configs.load import REPOSITORY, flat_fields
from configs.schema import RENAMED, RETIRED
from models import load_model
from train import evaluation, rl, session, sft

SHIPPED = sorted(path.name for path in (REPOSITORY / "configs").glob("*.yaml"))
INCUMBENT = REAL / "incumbent_configs.json"
SAME_KEYS = [
    "dream_eval",
    "llada_eval",
    "rl_dream",
    "rl_llada",
    "rl_sdar",
    "rl_sdar_code",
    "rl_sdar_process_reward_rlhf_with_value",
    "rl_sdar_with_value",
    "rl_trado",
    "rl_trado_process_reward_rlhf_with_value",
    "rl_trado_with_value",
    "sdar_eval",
    "sft_sdar",
    "sft_trado",
    "trado_eval",
    "trado_longcot_eval",
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A folder with a checkpoint of each family."""
    folder = tmp_path_factory.mktemp("model")
    for family in ("sdar", "dream", "llada", "mmada"):
        text_checkpoint(folder / family, family)
    return folder


@pytest.fixture
def no_model_work(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("a dry run must not load a model")

    for name in ("load_model", "load_value_model"):
        monkeypatch.setattr(session, name, refuse)


def command(name):
    if name.startswith("sft_"):
        return sft.run
    return evaluation.run if name.removesuffix(".yaml").endswith("_eval") else rl.run


def words(name, model_folder, tmp_path):
    """What a user must say: the model, and where the data is."""
    tasks = write_tasks(tmp_path / "tasks.json")
    family = next((family for family in ("dream", "llada", "mmada") if family in name), "sdar")
    pairs = write_json(tmp_path / "pairs.json", [{"prompt": "12=", "response": "21"}])
    return [
        f"model.pretrained_model={model_folder / family}",
        f"dataset.train_dataset={tasks}",
        f"dataset.eval_dataset={tasks}",
        f"dataset.optimization_data={pairs}",
        f"experiment.output_dir={tmp_path / 'runs'}",
        *([f"judge.local={model_folder / family}"] if "process_reward" in name else []),
        *([f"evaluation.eval_dataset={tasks}"] if "eval" not in name and "sft" not in name else []),
    ]


def test_what_is_shipped():
    assert {"rl_tiny.yaml", "sft_tiny.yaml", "tiny_eval.yaml"} <= set(SHIPPED)
    assert {"rl_trado.yaml", "rl_sdar.yaml", "sft_trado.yaml", "sft_sdar.yaml"} <= set(SHIPPED)
    assert {"rl_trado_with_value.yaml", "rl_sdar_with_value.yaml"} <= set(SHIPPED)
    assert {f"rl_{name}_process_reward_rlhf_with_value.yaml" for name in ("trado", "sdar")} <= set(SHIPPED)
    assert {"trado_eval.yaml", "sdar_eval.yaml", "trado_longcot_eval.yaml"} <= set(SHIPPED)
    assert {"dream_eval.yaml", "llada_eval.yaml", "mmada_eval.yaml"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_loads_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load_config([f"config=configs/{name}"])
    assert config.experiment.project.startswith(name.removesuffix(".yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_dry_run(name, model_folder, tmp_path, no_model_work, capsys):
    config = load_config([f"config=configs/{name}", "dry_run=true", *words(name, model_folder, tmp_path)])
    assert command(name)(config) is None
    assert config.experiment.project in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_the_arithmetic(model_folder, tmp_path, no_model_work, capsys):
    config = load_config(["config=configs/rl_sdar.yaml", "dry_run=true", *words("rl_sdar", model_folder, tmp_path)])
    rl.run(config)
    text = capsys.readouterr().out
    for part in ("64 prompts x 16 = 1024 responses", "up to 2000 tokens", "32 x 1 = 32 rows", "GiB"):
        assert part in text


def test_a_dry_run_counts_the_value_model(model_folder, tmp_path, no_model_work, capsys):
    words_ = words("rl_trado", model_folder, tmp_path)
    model = model_folder / "sdar"
    for name in ("rl_trado_with_value", "rl_trado"):
        rl.run(load_config([f"config=configs/{name}.yaml", "dry_run=true", *words_]))
    with_value, without = capsys.readouterr().out.split("dry run of rl_trado:")
    assert f"value   {model}, gam 1, lam 1, peak learning rate 5e-06, trained every step" in with_value
    size = 16 * sum(p.numel() for p in load_model(model).parameters()) / 2**30
    assert f"value model with gradients and optimizer {size:.2f}" in with_value and "value" not in without


def test_the_demo_says_that_its_model_is_made_first(tmp_path, no_model_work, capsys):
    words = ["dry_run=true", f"experiment.output_dir={tmp_path}", f"dataset.folder={tmp_path}"]
    rl.run(load_config(["config=configs/rl_tiny.yaml", *words]))
    assert "configs/sft_tiny.yaml would make it first" in capsys.readouterr().out


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("what", ["model.pretrained_model", "data"])
def test_a_missing_path_is_said_before_any_model_is_loaded(name, what, model_folder, tmp_path, no_model_work):
    if what == "data":
        key = "optimization_data" if "sft" in name else "eval_dataset" if "eval" in name else "train_dataset"
        lost = [f"dataset.{key}={tmp_path}/nowhere.json"]
    else:
        lost = [f"model.pretrained_model={tmp_path}/nowhere", "model.prepare_with=null"]
    config = load_config([f"config=configs/{name}", *words(name, model_folder, tmp_path), *lost])
    with pytest.raises(ValueError, match="nowhere"):
        command(name)(config)
    assert not (tmp_path / "runs").exists()


def incumbent(name):
    if not INCUMBENT.is_file():
        pytest.skip(f"{INCUMBENT} is absent: dLLM-RL's own configs are not part of the repository")
    return json.loads(INCUMBENT.read_text())[name]


@pytest.mark.parametrize("name", SAME_KEYS)
def test_a_config_of_dllm_rl_loads_as_it_is(name, tmp_path):
    """What has no effect is warned about by name, each key once; every other value arrives."""
    settings = incumbent(name)
    tree = OmegaConf.create({})
    for key, value in settings.items():
        OmegaConf.update(tree, key, value, force_add=True)
    OmegaConf.save(tree, tmp_path / f"{name}.yaml")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = load_config([f"config={tmp_path / name}.yaml"])
    assert sorted(str(w.message).split()[0] for w in caught) == sorted(set(settings) & set(RETIRED))
    moved = RENAMED | {"model": "model.pretrained_model", "model_base": "model.model_base"}
    for key in set(settings) - set(RETIRED):
        value = OmegaConf.select(tree, key)
        got = config
        for part in moved.get(key, key).split("."):
            got = getattr(got, part)
        assert got == (type(got)(value) if isinstance(got, float) else value), key


def test_no_retired_or_renamed_key_is_alive():
    known = {name for name, _ in flat_fields()}
    assert not known & (set(RETIRED) | set(RENAMED)) and set(RENAMED.values()) <= known
