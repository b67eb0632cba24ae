"""Tasks -> prompts."""

import json

import pytest
from end_to_end import text_checkpoint
from helpers import REAL
from transformers import Qwen2Tokenizer

from configs import merge
from data import Example, Task
from data.templates import chat_family
from models import load_model
from train.setup.doors import method_of
from train.setup.examples import tokenise as tokenise_examples
from train.setup.prompts import tokenise


def test_the_tokenizers_chat_template(tmp_path):
    model = load_model(text_checkpoint(tmp_path))
    task = Task("1", "{{ 1 }}=", None, {})
    with pytest.raises(ValueError, match="template 'chat' is the chat template of the checkpoint's tokenizer"):
        tokenise(task, model, "general", "chat", False)
    template = "{% for m in messages %}u:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    model = load_model(tmp_path)
    prompt = tokenise(task, model, "general", "chat", False)
    assert prompt.text == "u:{{ 1 }}=;a:"
    assert prompt.ids == model.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    model.save(tmp_path / "saved")
    assert tokenise(task, load_model(tmp_path / "saved"), "general", "chat", False) == prompt
    assert tokenise(task, model, "general", "auto", False).text.startswith("<|im_start|>user")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is absent")
@pytest.mark.parametrize("name", ["sdar", "dream"])
def test_real_chat_templates_are_the_familys_conversation(name):
    tokenizer = Qwen2Tokenizer.from_pretrained(REAL / "tokenizers" / name)
    turns = [{"role": "user", "content": "What is {{ 6 }} * 7?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == chat_family(name).conversation([("user", "What is {{ 6 }} * 7?")])


def test_ids_beyond_the_embedding_are_named_before_training(tmp_path):
    """A tokenizer that was extended, of a model that was not."""
    text_checkpoint(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["added_tokens"].append(raw["added_tokens"][-1] | {"id": 40, "content": "<tool>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    model = load_model(tmp_path)
    assert model.hf_config.vocab_size == 40
    config = merge({"training": {"method": "semi-ar"}})
    with pytest.raises(ValueError, match=r"example 1 holds the token '<tool>' \(id 40\), beyond the 40 ids"):
        examples = [Example("1=", "1", None), Example("<tool>1=", "1", None)]
        tokenise_examples(examples, model, config, method_of(config.training, "sft"))
    with pytest.raises(ValueError, match="the prompt of task a holds the token '<tool>'"):
        tokenise(Task("a", "<tool>1=", None, {}), model, "general", "plain", False)
