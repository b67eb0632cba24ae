"""Supervised rows: noise, traces, and examples as ids."""

import logging

import numpy as np
import pytest
import torch
from end_to_end import SFT, text_checkpoint, write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from trainees import make_config

from configs import load_config
from data.tasks import Example
from models import load_model
from models.attention import Masked, block_causal_mask
from models.spec import CheckpointSpec
from sample import Rollout
from train import sft
from train.algorithm.masking import METHODS, semi_ar
from train.algorithm.objectives import token_weights
from train.algorithm.packing import pack
from train.algorithm.replay import Replayer
from train.learner import tuning
from train.setup.blocks import Blocks
from train.setup.doors import method_of
from train.setup.examples import TokenizedExample, for_model, make_samples, tokenise

MASK, PAD, EOS = 1, 0, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(text_checkpoint(tmp_path_factory.mktemp("model")))


def training(**settings):
    return make_config(training={"method": "semi-ar", **settings}).training


def config_of(**settings):
    return make_config(training={"method": "semi-ar", **settings})


SEMI_AR, BY_TRACE = METHODS["semi-ar"], METHODS["trace"]


def make_row(sample, model, settings, epoch):
    (row,) = make_samples(sample, model, settings, method_of(settings, "sft"), epoch, window=0)
    return row


def noise_of(P, R, length, b, settings, seed=0):
    example = Rollout((0,), [1] * P, [2] * length, [1] * length, [0.0] * length, R, "stop", 1)
    canvas = Replayer("block", False, MASK, b).canvas(example, np.arange(length) < R)
    return semi_ar(canvas, settings, np.random.default_rng(seed))


@pytest.mark.slow
@settings(max_examples=50)
@given(
    st.integers(1, 9),
    st.integers(1, 20),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 3),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_noise_of_every_block(P, R, b, copies, low, high, seed):
    """Each copy of each block of the answer masks some of its tokens and trains exactly those; filling is masked."""
    length = R + -(P + R) % b
    settings = training(lower_p=min(low, high), upper_p=max(low, high), mask_times_per_sample=copies)
    noisy = noise_of(P, R, length, b, settings, seed)
    block = (P + np.arange(length)) // b
    places = sorted((n.round, n.unit) for n in noisy)
    assert places == [(copy, j) for copy in range(copies) for j in sorted(set(block[:R].tolist()))]
    for n in noisy:
        inside, answer = block == n.unit, np.arange(length) < R
        assert n.trained_C.any() and not (n.trained_C & ~(inside & answer)).any()
        assert np.array_equal(n.ids_C == MASK, n.trained_C | (inside & ~answer))


@pytest.mark.parametrize("level", [0.0, 0.25, 1.0])
def test_noise_level(level):
    settings = training(lower_p=level, upper_p=level, mask_times_per_sample=400)
    noisy = noise_of(4, 8, 8, 4, settings)
    masked = np.array([n.trained_C.sum() for n in noisy])
    if level == 0.25:
        expected = 4 * level + (1 - level) ** 4
        assert masked.mean() == pytest.approx(expected, abs=4 * masked.std() / len(masked) ** 0.5)
    else:
        assert set(masked.tolist()) == {4 if level else 1}


def test_noise_levels_are_uniform_between_their_bounds():
    settings = training(lower_p=0.0, upper_p=1.0, mask_times_per_sample=2000)
    noisy = noise_of(64, 64, 64, 64, settings)
    share = np.array([n.trained_C.mean() for n in noisy])
    assert np.quantile(share, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.05)


def test_one_example_is_one_row(model):
    sample = TokenizedExample(7, [5, 6, 7, 8, 9], [10, 11, 12, 13, 14, EOS], None)
    settings = training(mask_times_per_sample=2, lower_p=1.0, upper_p=1.0, post_num=0)
    row = make_row(sample, model, settings, epoch=0)
    assert row.key == (7,) and row.num_rounds == 2
    whole = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, EOS, PAD]
    assert row.ids[row.copy == 0].tolist() == whole[:8]
    assert row.ids[row.copy > 0].tolist() == [9, MASK, MASK, MASK, MASK, MASK, MASK, MASK] * 2
    assert row.targets.tolist() == [10, 11, 12, 13, 14, EOS] * 2


@pytest.mark.parametrize(("post_num", "pads"), [(0, 0), (1, 1), (2, 2), (9, 3), (None, 3)])
def test_pads_after_the_answer_are_trained_as_asked(model, post_num, pads):
    sample = TokenizedExample(0, [5] * 4, [10, 11, 12, 13, EOS], None)
    row = make_row(sample, model, training(lower_p=1.0, upper_p=1.0, post_num=post_num), epoch=0)
    assert row.targets.tolist() == [10, 11, 12, 13, EOS] + [PAD] * pads
    assert row.ids[row.copy == 2].tolist() == [MASK] * 4


def test_a_mask_and_its_complement_train_each_token_once_the_pads_of_the_last_block_too(model):
    """LLaDA2.0's objective (configs/sft_llada2.yaml), and 2.1's noise on what the masks leave clean."""
    sample = TokenizedExample(0, [5] * 3, [10, 11, 12, 13, 14, EOS], None)
    settings = {"method": "coupled", "lower_p": 0.3, "upper_p": 0.8, "post_num": None}
    row = make_row(sample, model, training(**settings), epoch=0)
    assert sorted(row.canvas_index.tolist()) == list(range(9)) and row.targets.tolist().count(PAD) == 3
    assert set(row.ids[row.index].tolist()) == {MASK}
    noisy = make_row(sample, model, training(**settings, replaced_p=1.0), epoch=0)
    read = noisy.ids[noisy.index]
    assert (read != noisy.targets).all() and {MASK} < set(read.tolist())
    assert set(noisy.canvas_index.tolist()) == set(range(9)) and len(noisy.index) > len(row.index)
    assert (noisy.ids[(noisy.copy > 0) & (noisy.positions < 3)] == 5).all()


def test_noise_depends_on_seed_epoch_and_example_alone(model):
    samples = [TokenizedExample(i, [5, 6], list(range(10, 30)), None) for i in range(3)]
    settings = training(lower_p=0.5, upper_p=0.5)

    def rows(order, epoch=0, seed=1):
        config = training(lower_p=0.5, upper_p=0.5, seed=seed)
        return {i: make_row(samples[i], model, config, epoch).ids.tolist() for i in order}

    assert rows([0, 1, 2]) == rows([2, 0, 1])
    assert rows([0])[0] != rows([0], epoch=1)[0] and rows([0])[0] != rows([0], seed=2)[0]
    assert settings.seed == 10086 and rows([0])[0] != rows([1])[1]


def test_a_trace_is_replayed_like_a_rollout(model):
    """Prompt of 2, blocks of 4: answer 10 11 | 12 13 14 2, unmasked in the order given."""
    sample = TokenizedExample(0, [5, 6], [10, 11, 12, 13, 14, EOS], [2, 1, 5, 3, 4, 3])
    row = make_row(sample, model, training(method="trace"), epoch=0)
    assert row.ids[row.copy > 0].reshape(-1, 4).tolist() == [
        [5, 6, MASK, MASK],
        [5, 6, MASK, 11],
        [MASK, MASK, MASK, MASK],
        [MASK, 13, MASK, EOS],
        [MASK, 13, 14, EOS],
    ]
    assert sorted(row.canvas_index.tolist()) == list(range(6))


@pytest.mark.parametrize("family", ["sdar", "dream", "llada"])
def test_gaps_in_a_trace_mean_nothing(family, tmp_path):
    model = load_model(text_checkpoint(tmp_path, family))
    examples = [Example("12", "345345", steps) for steps in ([0, 1, 1, 4, 2, 3], [5, 90, 90, 1007, 91, 300])]
    settings = training(method="trace", block_size=4)
    rows, gapped = (
        make_samples(sample, model, settings, method_of(settings, "sft"), 0, window=9)
        for sample in tokenise(examples, model, make_config(training=vars(settings)), BY_TRACE)
    )
    assert len(rows) == len(gapped) == (1 if family == "sdar" else 6)
    for row, other in zip(rows, gapped, strict=True):
        for name in ("ids", "index", "targets", "round_index"):
            assert getattr(row, name).tolist() == getattr(other, name).tolist()


def test_semi_ar_of_full_attention_has_a_row_a_block(tmp_path):
    """One, whatever mask_times_per_sample: blocks before it clean, all after it masked, as in dLLM-RL."""
    model = load_model(text_checkpoint(tmp_path, "llada"))
    settings = for_model(training(mask_times_per_sample=35, rows_per_response=1), model, SEMI_AR, 4)
    rows = make_samples(
        TokenizedExample(0, [5, 6, 7], list(range(10, 20)), None), model, settings, SEMI_AR, 0, window=12
    )
    assert [row.ids[3 : 3 + 4 * n].tolist() for n, row in enumerate(rows)] == [
        [*range(10, 10 + 4 * n)] for n in range(3)
    ]
    assert all((row.ids[3 + 4 * n + 4 :] == MASK).all() for n, row in enumerate(rows))
    assert all(set(row.canvas_index.tolist()) <= set(range(4 * n, 4 * n + 4)) for n, row in enumerate(rows))
    assert all((row.weight == 1.0).all() for row in rows)


def test_the_block_of_semi_ar_is_the_models(tmp_path):
    for family, size in (("sdar", 4), ("dream", 32)):
        spec = CheckpointSpec.read(text_checkpoint(tmp_path / family, family))
        assert Blocks.of(make_config(), spec, "sft") == Blocks(size, (), ())


def test_filling_after_a_trace_is_masked(model):
    """It is not to be read as a sign that the answer ends."""
    row = make_row(TokenizedExample(0, [5, 6], [10, 11, EOS], [1, 1, 2]), model, training(method="trace"), epoch=0)
    assert row.ids[row.copy > 0].reshape(-1, 4).tolist() == [[5, 6, MASK, MASK], [MASK, MASK, MASK, MASK]]
    assert row.targets.tolist() == [10, 11, EOS]


def test_log_probs_of_noisy_blocks(model):
    """A packed noisy copy is scored as if prompt, clean blocks before it and itself stood alone."""
    sample = TokenizedExample(0, [5, 6, 7], list(range(10, 20)), None)
    row = make_row(sample, model, training(mask_times_per_sample=2), epoch=0)
    batch = pack([row], [0], torch.device("cpu"))
    with torch.no_grad():
        packed = model(batch.ids, batch.positions, batch.layout, batch.index, batch.targets)
    for i, target, got in zip(row.index, row.targets, packed, strict=True):
        inside = row.copy == row.copy[i]
        before = (row.copy == 0) & (row.block < row.block[i])
        ids = torch.from_numpy(np.concatenate([row.ids[before], row.ids[inside]]))[None]
        layout = Masked(block_causal_mask(ids.shape[1], 4))
        hidden = model.hidden(ids, torch.arange(ids.shape[1])[None], layout)[0, row.positions[i]]
        assert float(got) == pytest.approx(float(model.lm_head(hidden).log_softmax(-1)[target].detach()), abs=1e-5)


def ids(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_examples_as_ids_end_with_one_end(model):
    examples = [Example("12=", "34", None), Example("12=", "34<eos>", None)]
    first, second = tokenise(examples, model, config_of(), SEMI_AR)
    assert first.prompt_ids == second.prompt_ids == ids(model, "12=")
    assert first.response_ids == second.response_ids == [*ids(model, "34"), EOS]


def test_over_long_prompts_are_dropped_and_answers_cut(model, caplog):
    examples = [Example("1" * n, "2" * m, None) for n, m in ((3, 3), (9, 3), (3, 9), (4, 4))]
    with caplog.at_level(logging.WARNING):
        samples = tokenise(examples, model, config_of(max_prompt_len=4, max_gen_length=5), SEMI_AR)
    assert [(s.index, len(s.prompt_ids), len(s.response_ids)) for s in samples] == [(0, 3, 4), (2, 3, 5), (3, 4, 5)]
    assert "1 of 4 prompts" in caplog.text and "1 responses are cut" in caplog.text


def test_nothing_left_is_an_error_that_says_why(model, caplog):
    long, masked = Example("123", "4", None), Example("12", "<mask>", None)
    empty = Example("", "", None, trace=vars(Rollout((0,), [], [7], [1], [0.0], 1, "stop", 1)))
    config = config_of(max_prompt_len=2)
    for examples, words in (
        ([long], r"of 1: 1 prompts exceed training.max_prompt_len=2. Raise it.$"),
        ([masked, masked], r"of 2: 2 examples hold the mask token.$"),
        ([empty], r"of 1: 1 prompts are empty.$"),
        (
            [masked, empty, long],
            r"of 3: 1 examples hold the mask token, 1 prompts are empty, 1 prompts exceed .*=2. Raise",
        ),
    ):
        with pytest.raises(ValueError, match=f"^no SFT example is left {words}"):
            tokenise(examples, model, config, SEMI_AR)
    assert "SFT data: 1 of 3 prompts are empty: dropped" in caplog.text


def test_steps_of_a_trace_are_counted_from_one_and_the_end_comes_last(model):
    (sample,) = tokenise([Example("1", "234", [0, 2, 1])], model, config_of(method="trace"), BY_TRACE)
    assert sample.response_ids == [*ids(model, "234"), EOS] and sample.step_map == [1, 3, 2, 4]
    (cut,) = tokenise(
        [Example("1", "234", [0, 2, 1])], model, config_of(method="trace", max_gen_length=2), METHODS["trace"]
    )
    assert cut.step_map == [1, 3]


@pytest.mark.parametrize("steps", [None, [], [1, 2], [1, 2, 3, 4], [1, -2, 3]])
def test_a_step_map_that_does_not_fit_is_an_error(model, steps):
    with pytest.raises(ValueError, match="example 1.*3 steps"):
        tokenise(
            [Example("1", "2", [1]), Example("1", "234", steps)], model, config_of(method="trace"), METHODS["trace"]
        )


@pytest.mark.parametrize("window", [None, 9])
def test_an_answers_weight_does_not_depend_on_the_others_of_its_update(shop, monkeypatch, window):
    """`constant` divides by one length in the whole run: the longest answer's, 5 tokens and the end, or the one set."""
    weights = {}

    def recorded(rows, *arguments, **named):
        found = token_weights(rows, *arguments, **named)
        weights.update({row.key: found.policy[i] * len(rows) for i, row in enumerate(rows)})
        return found

    monkeypatch.setattr(tuning, "token_weights", recorded)
    pairs = [{"prompt": "1=", "response": "2" * n} for n in (1, 2, 5, 3)]
    path = write_json(shop.folder / "lengths.json", pairs)
    length = [f"training.max_gen_length={window}"] if window else []
    more = ["num_train_epochs=1", "batch_size_lm=1", "mask_times_per_sample=1", "normalization=constant"]
    arguments = [f"dataset.optimization_data={path}", *(f"training.{word}" for word in more), *length]
    sft.run(load_config(shop.arguments(SFT, *arguments)))
    assert len(weights) == 4
    assert np.concatenate(list(weights.values())) == pytest.approx(1 / (window or 6))


def of_one_pass(shop, path, *arguments):
    more = [f"training.{word}" for word in ("num_train_epochs=1", "mask_times_per_sample=1", *arguments)]
    return load_config(shop.arguments(SFT, f"dataset.optimization_data={path}", "experiment.overwrite=true", *more))


def test_a_run_that_trained_nothing_is_no_success(shop, capsys):
    """What it would save is the model that it began with."""
    row = {"prompt_ids": [5], "canvas_ids": [6, 7, 8, 9], "canvas_step_map": [0, 0, 1, 1], "canvas_logprobs": [0.0] * 4}
    path = write_json(shop.folder / "traces.json", [row | {"num_response_tokens": 4, "num_steps": 1}])
    config = of_one_pass(shop, path, "max_gen_length=2")
    with pytest.raises(ValueError, match="none of the 1 updates .* nothing is saved: its examples have no token to tr"):
        sft.run(config)
    assert "step 1 trains nothing and is skipped: its examples have no token to train" in capsys.readouterr().out
    assert not [*(shop.runs / "sft").glob("ckpt/*")]
    sft.run(of_one_pass(shop, path))
    assert (shop.runs / "sft" / "ckpt" / "optimized").exists()


def test_a_run_whose_updates_were_not_finite_is_no_success(shop, monkeypatch):
    whole = tuning.negative_log_likelihood

    def infinite(*given):
        loss, sums = whole(*given)
        return loss * float("inf"), sums

    monkeypatch.setattr(tuning, "negative_log_likelihood", infinite)
    path = write_json(shop.folder / "one.json", [{"prompt": "1=", "response": "2"}])
    with pytest.raises(ValueError, match="none of the 1 updates .* not finite: lower optimizer.params.learning_rate"):
        sft.run(of_one_pass(shop, path))
    assert not [*(shop.runs / "sft").glob("ckpt/*")]
