"""Fine-tuning on canvases of random tokens (DiffusionGemma): draws, loss, gradient, splits and adapters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import tiny_checkpoint, tiny_model
from trainees import assert_same_weights, make_config, updater_of, weights_of

from models import load_model, lora
from models.model import NO_MASK
from train.algorithm.canvases import Easel, canvas_samples
from train.algorithm.masking import METHODS
from train.algorithm.packing import pack
from train.distributed.accelerator import make_accelerator
from train.learner.tuning import Canvases
from train.setup.examples import TokenizedExample, make_samples

FAMILY, END, C = "diffusion_gemma", 2, 8
UNIFORM = METHODS["uniform"]


def settings(**training):
    return make_config(training={"method": "uniform", "lower_p": 0.001, "upper_p": 1.0} | training)


def drawn(model, P, R, number=0, epoch=0, ended=True, **training):
    """The sample of a random text with an answer of R tokens."""
    generator = np.random.default_rng(number)
    prompt, answer = generator.integers(3, 60, P).tolist(), generator.integers(3, 60, R).tolist()
    if ended:
        answer[-1] = END
    example = TokenizedExample(number, prompt, answer, None)
    return make_samples(example, model, settings(**training).training, UNIFORM, epoch, window=0)


@pytest.fixture(scope="module")
def model():
    return tiny_model(FAMILY)


def test_a_sample_is_a_text_and_one_canvas_of_its_answer(model):
    easel, rng = Easel(C, 64, END, NO_MASK), np.random.default_rng(0)
    prompt, answer = [10, 11, 12], [20 + i for i in range(10)] + [END]
    found = set()
    for _ in range(40):
        (sample,) = canvas_samples((0,), prompt, answer, easel, settings().training, UNIFORM, rng, ended=True)
        first = int(sample.positions[14])
        found.add(first)
        assert sample.ids[:14].tolist() == prompt + answer and sample.ids.min() >= 0
        whole = answer + [END] * 5
        assert sample.targets[:C].tolist() == whole[first - 3 : first - 3 + C]
        assert sample.index[:C].tolist() == list(range(14, 22)) and sample.index[C:].tolist() == list(range(13))
        assert sample.targets[C:].tolist() == sample.ids[1:14].tolist()
        assert sample.weight[:C].sum() == pytest.approx(1) and sample.weight[C:].sum() == pytest.approx(1)
    assert found == {3, 11}


def test_what_fills_a_canvas_behind_a_cut_answer_is_not_trained(model):
    lengths = {int((s.copy[s.index] > 0).sum()) for i in range(20) for s in drawn(model, 4, 11, i, ended=False)}
    assert lengths == {C, 3}


@pytest.mark.parametrize("level", [0.0, 0.25, 1.0])
def test_noise_replaces_tokens_with_the_level_s_probability(model, level):
    samples = drawn(model, 4, 8, mask_times_per_sample=400, lower_p=level, upper_p=level)
    other = np.array([s.ids[12:] != s.targets[:C] for s in samples])
    assert other.mean() == pytest.approx(level * 63 / 64, abs=0.03)
    assert np.mean([s.conditioned for s in samples]) == pytest.approx(0.5, abs=0.1)
    if level == 1.0:
        assert {int(i) for s in samples for i in s.ids[12:]} == set(range(64))


def test_draws_are_those_of_the_example_and_the_epoch(model):
    first, again, later = drawn(model, 5, 20), drawn(model, 5, 20), drawn(model, 5, 20, epoch=1)
    assert first[0].ids.tolist() == again[0].ids.tolist() and first[0].conditioned == again[0].conditioned
    assert first[0].ids.tolist() != later[0].ids.tolist()


def plain_loss(reference, sample):
    """By transformers' own forward: the decoder after the text before the canvas alone, the encoder on all of it."""
    text = int((sample.copy == 0).sum())
    ids, canvas = torch.from_numpy(sample.ids[None, :text]), torch.from_numpy(sample.ids[None, text:])
    before = ids[:, : int(sample.positions[text])]
    conditioning = None
    if sample.conditioned:
        with torch.no_grad():
            conditioning = reference(input_ids=before, decoder_input_ids=canvas).logits
    given = {"input_ids": before, "decoder_input_ids": canvas, "self_conditioning_logits": conditioning}
    logits = reference(**given).logits[0]
    of_canvas = sample.copy[sample.index] > 0
    place = torch.from_numpy(sample.index[of_canvas] - text)
    decoded = F.cross_entropy(logits[place], torch.from_numpy(sample.targets[of_canvas]))
    hidden = reference.model.encoder(input_ids=ids).last_hidden_state[0]
    cap = reference.config.text_config.final_logit_softcapping
    return decoded + F.cross_entropy((reference.lm_head(hidden) / cap).tanh()[:-1] * cap, ids[0, 1:])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("model"), FAMILY)
    return load_model(folder), transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(folder).eval()


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_transformers(pair):
    """Rows of unequal lengths, canvases beyond the window of sliding layers (12), conditioned and not, cut and not."""
    model, reference = pair
    sizes = ((3, 9, True), (17, 40, True), (9, 30, False), (2, 3, True), (14, 21, False))
    samples = [s for i, (P, R, ended) in enumerate(sizes) for s in drawn(model, P, R, i, ended=ended)]
    assert {s.conditioned for s in samples} == {True, False}
    assert max(s.positions[-C] for s in samples) > 24
    want = torch.stack([plain_loss(reference, sample) for sample in samples]).mean()
    micro = pack(samples, range(len(samples)), torch.device("cpu"))
    logp = model(micro.ids, micro.positions, micro.layout, micro.index, micro.targets)
    weight = torch.from_numpy(np.concatenate([s.weight for s in samples])).float() / len(samples)
    got = -(weight * logp).sum()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    got.backward(), want.backward()
    theirs = dict(reference.named_parameters())
    compared = 0
    for name, weight in model.named_parameters():
        other = theirs.get(name)
        if weight.requires_grad and other is not None:
            assert float((weight.grad - other.grad).abs().max()) < 1e-4 * float(other.grad.abs().max()), name
            compared += 1
    assert compared > 30 and not any(w.requires_grad for n, w in model.named_parameters() if ".router." in n)
    model.zero_grad(), reference.zero_grad()


def learning(model, **training):
    config = settings(**training)
    return Canvases(updater_of(config, model, make_accelerator("no", torch.device("cpu"))), {})


def trained(samples, checkpointing=False, **training):
    model = tiny_model(FAMILY)
    if checkpointing:
        model.enable_gradient_checkpointing()
    totals = learning(model, **training).update(samples)
    return totals, weights_of(model)


@pytest.mark.slow
@pytest.mark.parametrize("other", [{"max_tokens_per_microbatch": 1}, {"checkpointing": True}])
def test_neither_micro_batches_nor_checkpointing_change_an_update(model, other):
    samples = [s for i, (P, R) in enumerate(((3, 9), (17, 40), (9, 30), (2, 3))) for s in drawn(model, P, R, i)]
    (whole, weights), (parts, others) = trained(samples), trained(samples, **other)
    assert parts.micro_batches == (4 if "checkpointing" not in other else 1)
    assert_same_weights(others, weights, 1e-5)
    assert parts.mean_loss == pytest.approx(whole.mean_loss, abs=1e-5)
    metrics = learning(model).metrics(whole)
    assert metrics["loss"] == pytest.approx(metrics["nll"] + metrics["encoder_nll"], rel=0.2)


def test_the_held_out_loss_is_the_loss_of_an_update(model):
    samples = [s for i in range(3) for s in drawn(model, 4, 12, i)]
    figures = learning(model).figures([([""] * 3, samples)])
    totals, _ = trained(samples)
    assert figures["loss"] == pytest.approx(totals.mean_loss, abs=1e-5)
    assert learning(model).figures([]) is None


@pytest.mark.slow
def test_adapters_are_on_attention_and_plain_mlps_and_are_read_back(tmp_path, pair):
    base = tiny_checkpoint(tmp_path / "base", FAMILY)
    model = load_model(base)
    model.add_adapters(lora.Adapters(rank=4, alpha=8.0), base, seed=0)
    names = lora.layers(model.model)
    assert any(n.startswith("encoder.language_model") for n in names) and any(n.startswith("decoder") for n in names)
    assert not any("vision" in n or "router" in n or "self_conditioning" in n for n in names)
    samples = [s for i in range(3) for s in drawn(model, 4, 12, i)]
    before = learning(model).figures([([""] * 3, samples)])["loss"]
    for _ in range(3):
        learning(model).update(samples)
    after = learning(model).figures([([""] * 3, samples)])["loss"]
    assert after < before
    model.save(tmp_path / "adapters")
    again = load_model(tmp_path / "adapters")
    assert learning(again).figures([([""] * 3, samples)])["loss"] == pytest.approx(after, abs=1e-6)
    with pytest.raises(ValueError, match="cannot be merged"):
        again.merge_adapters()
