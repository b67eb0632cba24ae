"""Canvases are denoised as transformers' generate denoises them, given the same noise."""

import pytest
import torch
import transformers
from helpers import random_prompts, tiny_checkpoint, tiny_model
from transformers.models.diffusion_gemma import generation_diffusion_gemma as generation

from models import load_model
from models.tiny import tiny_folder
from sample import Sampler, SamplingConfig, sampler_of
from sample.canvas import Noise
from sample.canvas_sampler import CanvasSampler
from sample.draw import Drawing
from sample.request import hash_key
from sample.targets import Coordinates

FAMILY, STEPS = "diffusion_gemma", 7


class TorchNoise(Noise):
    """Of torch's own generator, in the order in which transformers asks it."""

    def ids(self, at, vocab_size):
        return torch.randint(0, vocab_size, tuple(at.position.shape))

    def tokens(self, weight_NV, at):
        return torch.multinomial(weight_NV, 1)[:, 0]


def config_of(**settings):
    shared = {
        "max_new_tokens": 32,
        "strategy": "entropy_bounded",
        "entropy_bound": 2.0,
        "temperature": 0.8,
        "final_temperature": 0.4,
        "steps_per_block": STEPS,
        "settled_entropy": 1.5,
        "stop_ids": (2,),
    }
    return SamplingConfig(**shared | settings)


def reference_of(folder):
    """transformers' own model, its weights in memory of their own: where they lie changes the last bits."""
    reference = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(folder).eval()
    for parameter in reference.parameters():
        parameter.data = parameter.data.clone()
    return reference


def generate(reference, prompts, config, pad_id=None):
    return reference.generate(
        torch.tensor(prompts),
        max_new_tokens=config.max_new_tokens,
        max_denoising_steps=config.steps_per_block,
        t_max=config.temperature,
        t_min=config.final_temperature,
        stability_threshold=config.stable_steps,
        confidence_threshold=config.settled_entropy,
        sampler_config=generation.EntropyBoundSamplerConfig(entropy_bound=config.entropy_bound),
        eos_token_id=list(config.stop_ids),
        pad_token_id=pad_id,
    )


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A model in which rounding does not grow from step to step: small layers, a sharp embedding."""
    folder = tiny_folder(tmp_path_factory.mktemp("calm"), FAMILY)
    model = load_model(folder, random_init_seed=1)
    with torch.no_grad():
        model.decoder.embed_tokens.weight.mul_(14.0)
    model.save(folder)
    return load_model(folder), reference_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [9, 17])
@pytest.mark.parametrize("settings", [{}, {"stable_steps": 0, "settled_entropy": 2.6}], ids=str)
def test_one_prompt_gets_what_transformers_gives_it(tokens, settings, tmp_path):
    """Under torch's generator at one seed: tokens and steps, whichever canvas ends early."""
    model = load_model(tiny_checkpoint(tmp_path, FAMILY, seed=tokens, sharpness=4.0))
    config, (prompt,) = config_of(**settings), random_prompts([tokens], seed=tokens)
    torch.manual_seed(tokens)
    (rollout,) = CanvasSampler(model, config, TorchNoise()).generate([prompt])
    torch.manual_seed(tokens)
    want = generate(reference_of(tmp_path), [prompt], config)
    assert rollout.canvas_ids == want.sequences[0, tokens:].tolist()
    assert rollout.num_steps == round(len(rollout.canvas_ids) / want.tokens_per_forward.item())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"stable_steps": 0, "settled_entropy": 2.2}], ids=str)
def test_a_batch_gets_what_transformers_gives_it(calm, settings, monkeypatch):
    """Under the sampler's own noise, handed to transformers: tokens and steps of each, ended ones among them."""
    (model, reference), config = calm, config_of(**settings)
    prompts = random_prompts([9] * 6, seed=3)
    rollouts = sampler_of(model, config).generate(prompts)
    hand_over(monkeypatch, reference, torch.tensor([hash_key(r.key) for r in rollouts]), prompt_tokens=9)
    want = generate(reference, prompts, config, pad_id=0)
    for row, per_forward, rollout in zip(want.sequences, want.tokens_per_forward, rollouts, strict=True):
        ids = row[9:].tolist()
        tokens = len(rollout.token_ids)
        assert (ids[:tokens], set(ids[tokens:])) == (rollout.token_ids, {0} if ids[tokens:] else set())
        assert rollout.num_steps == round(sum(i != 0 for i in ids) / per_forward.item())
    steps = {rollout.num_steps for rollout in rollouts}
    assert len(steps) > 1 and (not settings or any(taken % STEPS for taken in steps))


def hand_over(monkeypatch, reference, key, prompt_tokens):
    """transformers takes its random numbers from `Noise` under these keys."""
    noise, begun, place = Noise(), reference._prepare_denoiser_inputs, {"canvas": -1, "step": 0}

    def at():
        shape = len(key), 8
        position = prompt_tokens + place["canvas"] * 8 + torch.arange(8)
        step = torch.full(shape, place["canvas"] * STEPS + place["step"])
        return Coordinates(key[:, None].expand(shape), position.expand(shape), step)

    def begin(**given):
        place.update(canvas=place["canvas"] + 1, step=0)
        return begun(**given)

    def multinomial(weight_NV, num_samples):
        token = noise.tokens(weight_NV, Coordinates(*(each.flatten() for each in at())))
        place["step"] += 1
        return token[:, None]

    monkeypatch.setattr(reference, "_prepare_denoiser_inputs", begin)
    monkeypatch.setattr(
        generation.EntropyBoundSampler, "initialize_canvas", lambda self, batch_size, device: noise.ids(at(), 64)
    )
    monkeypatch.setattr(torch, "multinomial", multinomial)


def tokens_of(rollouts):
    return [(r.key, r.canvas_ids, r.canvas_step_map, r.num_steps, r.finish_reason) for r in rollouts]


PROMPTS = random_prompts([9, 1, 23, 12, 30, 4, 17], seed=5)


@pytest.mark.slow
def test_a_batch_gives_the_answers_of_one_by_one(calm):
    """Prompts of unequal lengths, beyond the sliding window too, that come and go at the ends of canvases. The model
    is the calm one: in others self-conditioning amplifies fp32's rounding until other tokens are drawn."""
    model, _ = calm
    sampler = sampler_of(model, config_of(max_slots=3))
    together = sampler.generate(PROMPTS)
    alone = [sampler.generate([prompt])[0] for prompt in PROMPTS]
    assert tokens_of(together) == tokens_of(alone)
    assert {r.finish_reason for r in alone} == {"stop", "length"}
    for a, b in zip(together, alone, strict=True):
        assert a.canvas_logprobs == pytest.approx(b.canvas_logprobs, abs=1e-5)


@pytest.mark.slow
def test_in_fp64_a_batch_gives_the_answers_of_one_by_one_under_any_weights():
    """So that nothing but rounding sets a batch of other models apart in fp32."""
    model = tiny_model(FAMILY).double()
    for module in model.modules():
        if hasattr(module, "config"):  # torch's grouped products have no fp64
            module.config._experts_implementation = "eager"
    sampler = sampler_of(model, config_of(max_slots=3))
    assert tokens_of(sampler.generate(PROMPTS)) == tokens_of(sampler.generate([prompt])[0] for prompt in PROMPTS)


@pytest.mark.slow
def test_a_group_shares_its_prompt_and_has_draws_of_its_own(calm):
    sampler = sampler_of(calm[0], config_of())
    rollouts = sampler.generate(PROMPTS[:2], n=3)
    assert len({tuple(r.token_ids) for r in rollouts}) == 6
    keys = [rollouts[4].key]
    assert tokens_of(sampler.generate(PROMPTS[1:2], keys=keys)) == tokens_of(rollouts[4:5])


@pytest.mark.slow
def test_deterministic_rollouts_have_the_same_bits_in_any_company():
    sampler = sampler_of(tiny_model(FAMILY), config_of(deterministic=True, max_new_tokens=16))
    assert sampler.generate(PROMPTS[:3]) == [sampler.generate([prompt])[0] for prompt in PROMPTS[:3]]


@pytest.mark.slow
def test_a_session_hands_canvases_out_as_they_are_done(calm):
    sampler = sampler_of(calm[0], config_of(max_slots=2))
    session, handed, found = sampler.session(64), {}, {}
    indices = [index for prompt in PROMPTS for index in session.add(prompt)]
    session.cancel(indices[1])
    shown = set()
    while session.waiting or session.running:
        for update in session.poll():
            handed.setdefault(update.index, []).extend(update.ids)
            if update.rollout is not None:
                found[update.index] = update.rollout
        ids, steps = session.canvas(indices[0])
        assert len(ids) == len(steps) and all((i == -1) == (s == 0) for i, s in zip(ids, steps, strict=True))
        shown |= set(steps)
    assert len(shown) > 8 and indices[1] not in found
    assert {index: r.token_ids for index, r in found.items()} == handed
    kept = [prompt for i, prompt in enumerate(PROMPTS) if i != 1]
    assert tokens_of(found[i] for i in sorted(found)) == tokens_of(sampler.generate(kept))


@pytest.mark.slow
def test_requests_have_temperatures_and_filters_of_their_own(calm):
    """A greedy request and one with top_k = 1 say what they would alone; random tokens stay where nothing is kept."""
    model, _ = calm
    session, found = sampler_of(model, config_of()).session(64), {}
    drawings = [Drawing(0.0, 0, 1.0), Drawing(0.8, 5, 0.9), Drawing(0.8, 0, 1.0), Drawing(0.4, 0, 1.0)]
    for drawing in drawings:
        session.add(PROMPTS[0], drawing=drawing, seed=3)
    while session.running or session.waiting:
        found |= {update.index: update.rollout for update in session.poll() if update.rollout}
    for index, drawing in enumerate(drawings):
        own = drawing._asdict() | {"final_temperature": drawing.temperature / 2 or None, "seed": 3}
        (alone,) = sampler_of(model, config_of(**own)).generate(PROMPTS[:1])
        assert found[index].canvas_ids == alone.canvas_ids


def test_the_log_probability_is_that_of_the_step_that_it_names(calm):
    """With one step a canvas: of the likeliest tokens, at temperature 1."""
    model, _ = calm
    config = config_of(steps_per_block=1, max_new_tokens=8)
    (rollout,) = sampler_of(model, config).generate([PROMPTS[0]])
    P, cache = len(PROMPTS[0]), model.new_cache()
    position = torch.arange(P, P + 8)[None]
    at = Coordinates(torch.full((1, 8), hash_key(rollout.key)), position, torch.zeros(1, 8).long())
    with torch.no_grad():
        model.encode(torch.tensor([PROMPTS[0]]), torch.ones(1, P).bool(), torch.arange(P)[None], cache)
        hidden = model.denoise(Noise().ids(at, 64), None, torch.ones(1, P + 8).bool(), position, cache)
        best = model.capped_logits(hidden).log_softmax(-1).max(-1)
    assert rollout.canvas_ids == best.indices[0].tolist()
    assert rollout.canvas_logprobs == pytest.approx(best.values[0].tolist(), abs=1e-5)


def test_new_weights_are_copied_in_place():
    model, other = tiny_model(FAMILY), tiny_model(FAMILY, seed=1)
    sampler = sampler_of(model, config_of(max_new_tokens=8))
    sampler.update_weights(other.named_parameters())
    for mine, its in zip(model.buffers(), other.buffers(), strict=True):
        mine.copy_(its)
    (rollout,) = sampler.generate(PROMPTS[:1])
    assert rollout.weights_version == 1
    assert rollout.canvas_ids == sampler_of(other, config_of(max_new_tokens=8)).generate(PROMPTS[:1])[0].canvas_ids


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"strategy": "low_confidence_dynamic"},
            "strategy=entropy_bounded entropy_bound=0.1 temperature=0.8 final_temperature=0.4",
        ),
        ({"block_size": 4}, "block_size 4: a canvas of .* has 8 tokens"),
        ({"steps_per_block": [3, 4]}, "all canvases have one number of steps"),
        ({"edit_threshold": 0.5}, "edit_threshold=0.5: there is no such rule for canvases"),
        ({"remask_threshold": 0.5}, "remask_threshold=0.5: there is no such rule for canvases"),
        ({"record_routing": True}, "record_routing=True: there is no such rule for canvases"),
        ({"cache": "prefix"}, "cache 'prefix' approximates full attention"),
        ({"output": "image"}, "draws no pictures"),
        ({"final_temperature": 0.9}, "final_temperature is 0.9; it must be above 0, at most temperature"),
        ({"stable_steps": -1}, "stable_steps is -1"),
        ({"settled_entropy": -0.1}, "settled_entropy is -0.1"),
    ],
)
def test_choices_that_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        sampler_of(tiny_model(FAMILY), config_of(**settings))


def test_what_canvases_do_not_read_is_warned_about(caplog):
    sampler_of(tiny_model(FAMILY), config_of(threshold=0.5, target="random"))
    assert "threshold, target: no part of decoding canvases (diffusion_gemma)" in caplog.text


def test_kinds_of_models_and_choices_are_not_mixed_up():
    with pytest.raises(ValueError, match="a diffusion_gemma model has no masks .* sample.sampler_of"):
        Sampler(tiny_model(FAMILY), config_of())
    with pytest.raises(ValueError, match="final_temperature=0.5 is of canvases"):
        Sampler(tiny_model("sdar"), SamplingConfig(temperature=0.8, final_temperature=0.5))
    assert type(sampler_of(tiny_model("sdar"))) is Sampler


def test_steps_are_the_checkpoints_where_none_are_named():
    model = tiny_model(FAMILY)
    assert config_of(steps_per_block=None).for_model(model).steps_per_block == 48
    model.spec.generation["max_denoising_steps"] = 12
    assert config_of(steps_per_block=None).for_model(model).steps_per_block == 12
