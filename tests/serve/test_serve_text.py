"""Ids to text that is never taken back: characters of several tokens, stop texts over pieces. Settings as typed."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sample import Rollout
from sample.session import Update
from serve.settings import ServeSettings, help_text, read_settings
from serve.text import AnswerText, TokenTexts

TEXT = (
    "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{PARTY POPPER} caf\N{LATIN SMALL LETTER E WITH ACUTE}  \u65e5\u672c"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE, as Qwen's: characters beyond ASCII are several tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(["the end of the end"], trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def updates(ids, reason, draw):
    """The ids cut into pieces as a session hands them out, the last with a rollout."""
    places = sorted(draw.sample(range(1, len(ids)), min(4, len(ids) - 1)))
    for start, end in zip([0, *places], [*places, len(ids)], strict=True):
        numbers = list(range(start, end))
        last = end == len(ids)
        rollout = Rollout((0,), [5], ids, ids, [0.0] * len(ids), len(ids), reason, 9) if last else None
        yield Update(0, ids[start:end], [i + 1 for i in numbers], [-float(i) for i in numbers], rollout)


def fed(tokenizer, ids, reason="length", stops=(), seed=0):
    answer, pieces = AnswerText(tokenizer, stops), []
    for update in updates(ids, reason, random.Random(seed)):
        pieces.append(answer.feed(update))
        if pieces[-1].finish_reason is not None:
            break
    assert "".join(piece.text for piece in pieces) == answer.text
    return answer, pieces


@pytest.mark.parametrize("seed", range(8))
def test_pieces_add_up_to_the_decoded_text_and_no_character_comes_in_halves(tokenizer, seed):
    ids = tokenizer(TEXT)["input_ids"]
    answer, pieces = fed(tokenizer, ids, seed=seed)
    assert answer.text == TEXT and answer.tokens == len(ids)
    assert not any("\ufffd" in piece.text for piece in pieces)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [token.id for token in tokens] == ids and "".join(token.text for token in tokens) == TEXT


def test_an_answer_that_ends_inside_a_character_shows_that(tokenizer):
    ids = tokenizer("a\N{PARTY POPPER}")["input_ids"][:-1]
    answer, pieces = fed(tokenizer, ids)
    assert answer.text == tokenizer.decode(ids) and answer.text.startswith("a\ufffd")
    assert not any("\ufffd" in piece.text for piece in pieces[:-1])


def test_the_stop_id_counts_as_a_token_and_is_no_text(tokenizer):
    ids = tokenizer("end")["input_ids"]
    answer, pieces = fed(tokenizer, [*ids, 3], reason="stop")
    assert (answer.text, answer.tokens, pieces[-1].finish_reason) == ("end", len(ids) + 1, "stop")


@pytest.mark.parametrize("seed", range(6))
def test_a_stop_text_is_held_back_until_it_is_known_not_to_be_one(tokenizer, seed):
    ids = tokenizer("the en en end of it")["input_ids"]
    answer, pieces = fed(tokenizer, ids, stops=["never", "end"], seed=seed)
    assert answer.text == "the en en " and pieces[-1].finish_reason == "stop"
    kept = "".join(token.text for piece in pieces for token in piece.tokens)
    assert kept.startswith(answer.text) and len(kept) - len(answer.text) < 4 and answer.tokens < len(ids)
    other, _ = fed(tokenizer, ids, stops=["endless"], seed=seed)
    assert other.text == "the en en end of it"


def test_a_token_text_is_what_the_token_adds(tokenizer):
    texts, ids = TokenTexts(tokenizer), tokenizer(TEXT)["input_ids"]
    for i, token_id in enumerate(ids):
        texts.add(token_id)
        assert texts.rest() == "" or tokenizer.decode(ids[: i + 1]).endswith("\ufffd")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model is not set"),
        (["model=x", "prot=1"], "Did you mean port="),
        (["model=x", "--max-slots", "3"], "Did you mean max_slots="),
        (["model=x", "port=seven"], "port must be of type int"),
        (["model=x", "port=70000"], "between 0 and 65535"),
        (["model=x", "device=gpu"], "choose from auto, cpu, cuda"),
        (["model=x", "temperature=nan"], "finite number"),
    ],
)
def test_a_wrong_key_or_value_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_settings(ServeSettings, arguments, "usage")


def test_settings_are_read_as_they_are_typed(monkeypatch, capsys):
    monkeypatch.setenv("KEY", "secret")
    typed = ["model=007", "api_key=${oc.env:KEY}", "block_size=8", "threshold=1", "name=null", "host=0.0.0.0"]
    settings = read_settings(ServeSettings, typed, "usage")
    assert (settings.model, settings.api_key, settings.block_size, settings.threshold) == ("007", "secret", 8, 1.0)
    assert settings.name is None and settings.port == 8000
    with pytest.raises(SystemExit):
        read_settings(ServeSettings, ["--help"], "usage")
    assert capsys.readouterr().out.strip() == help_text(ServeSettings, "usage").strip()
