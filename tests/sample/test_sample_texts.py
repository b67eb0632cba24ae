"""`Sampler.generate` takes texts and chats beside token ids."""

import pytest
from helpers import tiny_model

from models import load_model
from sample import Sampler, SamplingConfig


@pytest.fixture(scope="module")
def sampler(model_folder):
    return Sampler(load_model(model_folder), SamplingConfig(max_new_tokens=6, temperature=1.0))


def test_a_text_and_a_chat_are_the_prompts_of_their_ids(sampler):
    tokenizer = sampler.model.tokenizer
    chat = [{"role": "system", "content": "4"}, {"role": "user", "content": "12=<eos>"}]
    rollouts = sampler.generate(["12=<eos>", chat, [5, 6]], n=2)
    text = tokenizer("12=<eos>")["input_ids"]
    assert [r.prompt_ids for r in rollouts[::2]][0] == text and text[-1] == tokenizer.eos_token_id
    written = rollouts[2].prompt_ids
    assert tokenizer.eos_token_id not in written
    assert written[: -len(tokenizer("<|im_end|>\n<|im_start|>assistant\n")["input_ids"])][-5:] == [
        i for c in "<eos>" for i in tokenizer(c)["input_ids"]
    ]
    assert rollouts == sampler.generate([text, written, [5, 6]], n=2)


def test_a_model_without_a_tokenizer_takes_ids_alone():
    with pytest.raises(ValueError, match="no tokenizer"):
        Sampler(tiny_model("sdar")).generate(["12="])
