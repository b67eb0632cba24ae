"""What a new family costs: one file and one import line."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY_CONFIGS, random_prompts, tiny_checkpoint

import models.families
from data.tasks import Task
from data.templates import render_prompt
from models import load_model
from models.families.base import ChatFormat, Family
from sample import Sampler, SamplingConfig

ROOT = Path(models.families.__file__).parents[2]
FILE = """
from models.families.base import ChatFormat, Family, pick

KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings")

NOVEL = Family(
    name="novel",
    model_types=("novel",),
    attention="block",
    model_class="MistralForCausalLM",
    config_arguments=lambda raw_config: pick(raw_config, KEYS),
    chat=ChatFormat(turn="[%s]%s", end_of_turn="[/]", assistant="[assistant]"),
    default_block_size=8,
)
"""


@pytest.fixture
def novel(tmp_path, monkeypatch):
    """The family of FILE, imported like the line `from models.families.novel import NOVEL` would."""
    path = tmp_path / "novel.py"
    path.write_text(FILE)
    spec = importlib.util.spec_from_file_location("novel", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(models.families, "FAMILIES", (*models.families.FAMILIES, module.NOVEL))
    monkeypatch.setitem(TINY_CONFIGS, "novel", TINY_CONFIGS["sdar"] | {"model_type": "novel", "block_size": None})
    return module.NOVEL


def test_a_new_family_is_loaded_sampled_and_saved(novel, tmp_path):
    model = load_model(tiny_checkpoint(tmp_path / "model", "novel"))
    assert (model.family, model.attention, model.block_size) == ("novel", "block", 8)
    assert type(model.model).__name__ == "MistralModel"
    (rollout,) = Sampler(model, SamplingConfig(max_new_tokens=12, stop_ids=[])).generate(random_prompts([5]))
    assert len(rollout.token_ids) == 12 and model.mask_id not in rollout.token_ids
    model.save(tmp_path / "saved")
    ids = torch.tensor([rollout.prompt_ids + rollout.canvas_ids])
    assert torch.equal(load_model(tmp_path / "saved").logits(ids), model.logits(ids))


def test_a_new_family_renders_its_own_prompts(novel):
    prompt = render_prompt(Task("0", "6 * 7?", "42", {}), family="novel", data_type="general")
    assert prompt == "[user]6 * 7?[/][assistant]"


@pytest.mark.slow
def test_the_line_is_all_that_a_family_needs_beside_its_file(tmp_path):
    for room in ("models", "configs", "runtime"):
        shutil.copytree(ROOT / room, tmp_path / room)
    shutil.copytree(ROOT / "data", tmp_path / "data", ignore=lambda *_: ["hub"])
    (tmp_path / "models" / "families" / "novel.py").write_text(FILE)
    listed = tmp_path / "models" / "families" / "__init__.py"
    line = "from models.families.sdar import SDAR\n"
    listed.write_text(listed.read_text().replace(line, f"from models.families.novel import NOVEL\n{line}"))
    code = (
        "from models.families import find_family; from data.templates import chat_family;"
        "print(find_family({'model_type': 'novel'}, None, '.').name, chat_family('novel').conversation([]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "novel [assistant]\n"


@pytest.mark.parametrize("module", ["data.templates", "models.families"])
def test_prompts_and_families_leave_torch_unloaded(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_names_of_models_are_loaded_when_they_are_used():
    assert models.load_model is load_model and models.ValueModel.__name__ == "ValueModel"
    with pytest.raises(AttributeError, match="'models' has no attribute 'load_modle'"):
        _ = models.load_modle


def test_block_attention_with_a_logit_shift_is_refused():
    with pytest.raises(ValueError, match="family 'both' has attention='block' and logit_shift=True.*attention='full'"):
        Family("both", ("both",), "block", "Qwen2ForCausalLM", dict, logit_shift=True)


def test_turns_are_pairs_or_messages():
    chat = ChatFormat(turn="[%s]%s", end_of_turn="[/]", after_turn="\n", assistant="[assistant]", system="S")
    pairs = [("user", "a"), ("assistant", "b"), ("user", "c")]
    want = "[system]S[/]\n[user]a[/]\n[assistant]b[/]\n[user]c[/]\n[assistant]"
    assert chat.conversation(pairs) == want
    assert chat.conversation([{"role": role, "content": text} for role, text in pairs]) == want
    assert chat.conversation([{"role": "system", "content": "T"}]) == "[system]T[/]\n[assistant]"
