"""Every shipped recipe fits the machine that its header names, engine included, by the memory plan: shapes alone."""

import functools
import json
import re
import shutil

import pytest
from helpers import REAL, TINY_CONFIGS, thinned

from configs import load_config
from configs.engine import TITLES, engine_file
from configs.load import REPOSITORY
from models.tiny import tiny_folder
from train.memory import inputs as memory_inputs
from train.memory import plan
from train.memory.fit import Fit
from train.memory.inputs import Inputs
from train.setup.models import RunModels, spec_of

pytestmark = pytest.mark.skipif(not (REAL / "layouts").is_dir(), reason=f"{REAL}/layouts is absent")
RECIPES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml") if "tiny" not in path.stem)
LAYOUTS = {
    "sdar": ["SDAR-4B-Chat", "SDAR-8B-Chat"],
    "llada": ["LLaDA-8B-Instruct"],
    "dream": ["Dream-v0-Instruct-7B"],
    "llada2": ["LLaDA2.1-mini"],
}
MACHINE = re.compile(
    r"^# Machine: (?:(?P<nodes>\d+) nodes of )?(?P<gpus>\d+) GPUs? of (?P<gb>\d+) GB(?: \((?P<engine>\w+)\))?"
    r"(?: and (?P<host>\d+) GB of host memory(?: each)?)?, for models of up to (?P<billions>4|8|16|26|30)B"
    r"(?: \(8B: GPUs of 141 GB\))?\.$",
    re.MULTILINE,
)
PICTURES = {
    "image_aspect_ratio": "anyres_max_4",
    "image_grid_pinpoints": "(1x1),...,(6x6)",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
}
"""What LLaDA-V's config.json has beside its language model's keys."""
CANVAS_SIZES = {
    **{"vocab_size": 262144, "hidden_size": 2816, "intermediate_size": 2112, "moe_intermediate_size": 704},
    **{"num_hidden_layers": 30, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256},
    **{"global_head_dim": 512, "num_global_key_value_heads": 2, "num_experts": 128, "top_k_experts": 8},
    **{"sliding_window": 1024, "layer_types": None, "max_position_embeddings": 131072},
}
"""Sizes that come to the 26B parameters of DiffusionGemma; its config.json is not at hand."""
CARD_GIB = {80: 79.0, 141: 140.0}
"""What torch finds on a card that is sold with so many GB: an H100's 79.1, an A100's 79.3."""


@pytest.fixture(scope="module", autouse=True)
def networks_made_once():
    """Shapes of a network, once a checkpoint: not for each recipe."""
    made, make = {}, memory_inputs.empty_network

    def empty_network(family, raw):
        key = (family.name, json.dumps(dict(raw), sort_keys=True))
        return made.setdefault(key, None) or made.update({key: make(family, raw)}) or made[key]

    memory_inputs.empty_network = empty_network
    yield
    memory_inputs.empty_network = make


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoint folders of a recipe's family; MMaDA has the shapes of LLaDA, LLaDA-V's layout those of its language
    model."""
    made = {}
    for family, layout, model_type in (("mmada", "LLaDA-8B-Instruct", "mmada"), ("lladav", "LLaDA-V", "llava_llada")):
        made[family] = tmp_path_factory.mktemp(family)
        shutil.copytree(REAL / "layouts" / layout, made[family], dirs_exist_ok=True)
        raw = json.loads((made[family] / "config.json").read_text()) | {"model_type": model_type}
        raw |= PICTURES if family == "lladav" else {}
        (made[family] / "config.json").write_text(json.dumps(raw))

    made["diffusion_gemma"] = tmp_path_factory.mktemp("diffusion_gemma")
    text = TINY_CONFIGS["diffusion_gemma"]["text_config"] | CANVAS_SIZES
    tiny_folder(made["diffusion_gemma"], "diffusion_gemma", canvas_length=256, text_config=text)

    def folders_of(name):
        if "30b" in name:
            return [REAL / "layouts" / "SDAR-30B-A3B-Chat"]
        family = next(
            family
            for family in ("diffusion_gemma", "dream", "lladav", "llada2", "llada", "mmada", "sdar")
            if family in name.replace("trado", "sdar")
        )
        return [made[family]] if family in made else [REAL / "layouts" / layout for layout in LAYOUTS[family]]

    return folders_of


def header(name):
    text = (REPOSITORY / "configs" / f"{name}.yaml").read_text()
    found = MACHINE.search(text)
    assert found, f"{name}: no line '# Machine: ...'"
    return {key: value and (value if key == "engine" else int(value)) for key, value in found.groupdict().items()}


@functools.cache
def kind_of(name):
    return "sft" if name.startswith("sft") else "eval" if "eval" in name else "rl"


@pytest.mark.parametrize("name", thinned(RECIPES, 4))
@pytest.mark.filterwarnings("ignore:.*does not read")
def test_a_recipe_fits_the_machine_that_it_names(name, folders):
    machine, kind = header(name), kind_of(name)
    given = [f"experiment.gpu_memory_gib={CARD_GIB[machine['gb']]}", "model.random_init=true"]
    given += [f"experiment.processes={machine['gpus']}"]
    if "process_reward" in name:
        given += ["judge.local=null", "judge.api=http://judge/v1", "judge.model=judge"]
    for folder in folders(name):
        if machine["billions"] == 4 and "8B" in folder.name:
            given[0] = "experiment.gpu_memory_gib=140"
        config = load_config([f"config=configs/{name}.yaml", f"model.pretrained_model={folder}", *given])
        engine = engine_file(config.experiment.deepspeed_file)
        if kind != "eval":
            assert (TITLES[engine.kind], engine.nodes, engine.processes_per_node) == (
                *(machine["engine"], machine["nodes"] or 1, machine["gpus"]),
            )
        models = RunModels.of(config, spec_of(config), kind)
        fit = Fit.of(config, models, response_tokens=config.training.max_gen_length if kind == "sft" else None)
        inputs = Inputs.of(fit.config, models, response_tokens=config.training.max_gen_length)
        assert not plan.too_large(inputs), f"{folder.name}: {plan.phases(inputs)}"
        if kind == "eval":
            assert fit.sizes["slots"].number >= 8
            continue
        longest, host = inputs.unsplit_tokens, sum(plan.host(inputs).values()) / 1e9
        assert fit.sizes["micro-batch"].number >= longest
        if machine["host"] is None:  # adapters on a base that lies on the GPU
            assert inputs.adapters is not None and host < 1
            continue
        assert host < machine["host"]
        assert folder is not folders(name)[-1] or machine["host"] < 1.7 * host, "the header asks for too much"
        if kind == "rl":
            slots, evaluated = (fit.sizes[name].number for name in ("slots", "evaluation slots"))
            least = 8 if inputs.picture else 32  # whole sequences of up to 5,000 tokens of text and picture
            assert slots >= min(least, inputs.responses(config.rollout)) and evaluated >= least


def test_every_recipe_names_its_machine_and_no_gpu_recipe_fixes_its_slots():
    for path in (REPOSITORY / "configs").glob("*.yaml"):
        text = path.read_text()
        if "tiny" in path.stem:
            assert "# Machine: 2 CPU cores." in text
        else:
            header(path.stem)
            assert "max_slots" not in text
