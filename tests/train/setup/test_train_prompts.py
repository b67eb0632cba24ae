"""Tasks -> prompts."""

import pytest
from end_to_end import text_checkpoint
from helpers import REAL
from transformers import Qwen2Tokenizer

from data import Task
from data.templates import chat_family
from models import load_model
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
