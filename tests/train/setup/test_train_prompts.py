"""Sections of a config -> sampling configs, for full attention as dLLM-RL's files write them; tasks -> prompts."""

import json
import logging

import pytest
from end_to_end import text_checkpoint
from helpers import REAL, random_prompts, tiny_model
from transformers import Qwen2Tokenizer

from configs import merge
from configs.schema import EvaluationConfig, RolloutConfig
from data import Example, Task
from data.templates import chat_family
from models import load_model
from sample import Sampler
from train.setup.blocks import block_sizes
from train.setup.doors import method_of
from train.setup.examples import tokenise as tokenise_examples
from train.setup.prompts import sampling_entries, tokenise


@pytest.fixture(scope="module")
def dream():
    return tiny_model("dream")


def entries(model, kind=RolloutConfig, **keys):
    decode = kind(**keys)
    blocks = block_sizes(decode, model.spec, model.block_size)
    return sampling_entries(decode, model, blocks, seed=0, deterministic=False)


def test_the_keys_of_dream(dream):
    keys = {"max_new_tokens": 100, "steps": 90, "max_slots": 2, "temperature": 0.1, "top_p": 0.95, "top_k": 40}
    keys |= {"cache": "prefix", "further_horizon": 16, "block_size": [32, 4], "target": "entropy", "alg_temp": 0.5}
    keys |= {"strategy": ["low_confidence_static", "low_confidence_dynamic"], "pad_target_penalty": 1.2}
    static, dynamic = entries(dream, EvaluationConfig, **keys, early_stop=False).values()
    assert (static.max_new_tokens, static.max_slots, static.block_size) == (100, 2, 32)
    assert static.steps_per_block == [23, 23, 22, 22]
    assert dynamic.block_size == 4 and dynamic.steps_per_block == [4] * 15 + [3] * 10
    for config in (static, dynamic):
        assert (config.cache, config.further_horizon, config.target) == ("prefix", 16, "neg_entropy")
        assert (config.alg_temp, config.pad_target_penalty, config.early_stop) == (0.5, 1.2, False)
        assert (config.temperature, config.top_p, config.top_k) == (0.1, 0.95, 40)


def test_without_a_cache_the_horizon_has_no_meaning(dream):
    (config,) = entries(dream, further_horizon=128, max_new_tokens=64).values()
    assert (config.cache, config.further_horizon, config.block_size, config.steps_per_block) == ("none", None, 32, 32)
    (config,) = entries(dream, cache="dual", further_horizon=128, max_new_tokens=8).values()
    assert (config.cache, config.further_horizon, config.max_new_tokens) == ("dual", None, 8)


def test_block_families_have_their_cache_anyway(sdar, caplog):
    (config,) = entries(sdar, cache="prefix", further_horizon=128, steps=8, max_new_tokens=16).values()
    assert (config.cache, config.further_horizon, config.steps_per_block) == ("exact", None, [2, 2, 2, 2])
    assert "rollout.cache: prefix approximates full attention; sdar keeps its exact cache" in caplog.text


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


def test_steps_that_do_not_fit(dream):
    with pytest.raises(ValueError, match="steps=3 are fewer than the 4 blocks of 32 tokens in 128"):
        entries(dream, steps=3, max_new_tokens=128, block_size=32)
    with pytest.raises(ValueError, match="steps=8 and rollout.steps_per_block=4 say the same"):
        entries(dream, steps=8, steps_per_block=4)


@pytest.mark.parametrize(("steps", "sizes", "said"), [(8, 4, 1), (4, 4, 0), (8, [4, 8], 1), ([4, 9], [4, 8], 1)])
def test_more_steps_than_a_block_has_tokens_are_said(sdar, caplog, steps, sizes, said):
    with caplog.at_level(logging.WARNING):
        entries(sdar, steps_per_block=steps, block_size=sizes)
    size, most = (8, 9) if steps == [4, 9] else (4, 8)
    text = f"steps_per_block={most} is more than a block's {size} tokens: at most {size} steps are taken"
    assert len(caplog.records) == caplog.text.count(text) == said


def test_steps_as_many_as_the_blocks_tokens_are_what_more_steps_do(sdar):
    prompts = random_prompts([3, 4, 6])
    answers = []
    for steps in (4, 9):
        words = {"steps_per_block": steps, "block_size": 4, "strategy": "low_confidence_static"}
        (config,) = entries(sdar, max_new_tokens=9, **words).values()
        answers.append(Sampler(sdar, config).generate(prompts))
    assert [(r.canvas_ids, r.canvas_step_map) for r in answers[0]] == [
        (r.canvas_ids, r.canvas_step_map) for r in answers[1]
    ]


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
