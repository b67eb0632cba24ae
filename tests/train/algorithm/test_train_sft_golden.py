"""Losses of fine-tuning on rows with pictures, against those of MMaDA's and LLaDA-V's own code under the same masks."""

import json

import numpy as np
import pytest
import torch
from helpers import GOLDEN
from safetensors.torch import load_file

from configs import merge
from models import Prompt, load_model
from models.attention import Masked
from sample import Rollout
from train.algorithm.objectives import negative_log_likelihood
from train.algorithm.replay import Replayer, replay
from train.learner.updater import outputs

pytestmark = pytest.mark.slow
MMADA, LLADAV, MAGVIT = (GOLDEN / name for name in ("mmada_mmu", "lladav_vision", "magvit"))


def nll_of(logp, weight):
    return negative_log_likelihood(torch.as_tensor(logp), torch.as_tensor(weight, dtype=torch.float32))[0].item()


def test_mmadas_loss_of_questions_about_pictures():
    facts, given = json.loads((MMADA / "sft.json").read_text()), load_file(MMADA / "sft.safetensors")
    pictures = json.loads((MAGVIT / "magvit.json").read_text())
    model = load_model(MMADA, image_tokenizer=str(MAGVIT))
    replayer = Replayer(model.attention, model.logit_shift, model.mask_id, 1)
    training = merge({"training": {"post_num": None}}).training
    losses, means = [], []
    for i, (text, image) in enumerate(zip(facts["texts"], facts["images"], strict=True)):
        name, fit = image.split(".")
        file = MAGVIT / pictures["images"][name]["file"]
        ours = model.prompt(text, [file], fit=fit, resolution=pictures["resolution"]).ids
        clean, prompt = given["clean_ids"][i].tolist(), int(given["prompt_mask"][i].sum())
        bos = clean.index(model.tokenizer.get_vocab()["<|startoftext|>"])  # which MMaDA's training alone has
        padding = len(clean) - len(ours) - 1
        assert clean == [*ours[:bos], clean[bos], *ours[bos:], *[model.pad_id] * padding]
        masked_C = (given["input_ids"][i, prompt:] == model.mask_id).numpy()
        canvas, length = clean[prompt:], len(clean) - prompt - padding
        assert length + padding == given["answer_lengths"][i]
        rollout = Rollout((i,), clean[:prompt], canvas, [1] * len(canvas), [0.0] * len(canvas), length, "stop", 1)
        (sample,) = replay(
            rollout,
            replayer,
            training,
            method=lambda canvas, *_, masked_C=masked_C: [canvas.masked(0, 0, masked_C, masked_C)],
            pad_id=model.pad_id,
        )
        assert sample.ids.tolist() == given["input_ids"][i].tolist()
        (logp,) = outputs(model, [sample], [0], 2048, torch.device("cpu"))
        np.testing.assert_allclose(logp, given["logp"][i, prompt:][torch.from_numpy(masked_C)], atol=1e-4)
        weight = 1.0 / (given["p_mask"][i] * given["answer_lengths"][i])
        losses.append(nll_of(logp, np.full(len(logp), weight)))
        means.append(nll_of(logp, np.full(len(logp), 1.0 / len(logp))))
    assert means == pytest.approx(facts["mean_loss_rows"], abs=1e-4)
    assert np.mean(losses) == pytest.approx(facts["loss_mmu"], abs=1e-4)
    assert np.mean(means) == pytest.approx(facts["mean_loss"], abs=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_lladavs_loss_of_conversations_about_pictures(number):
    """Its labels are the template's tokens of every turn too, so some lie before the picture."""
    facts = json.loads((LLADAV / "sft.json").read_text())["samples"][number]
    given = {name: tensor[None] for name, tensor in load_file(LLADAV / "sft.safetensors").items()}
    stored_ids, labels, masked, logp = (
        given[f"s{number}.{name}"][0] for name in ("input_ids", "expanded_labels", "masked", "logp")
    )
    model = load_model(LLADAV)
    (picture,) = model.encode_images([LLADAV / "images" / f"{facts['image']}.png"])
    spelled = [i for one in stored_ids.tolist() for i in (picture.ids if one == -200 else [one])]
    ids = torch.tensor(Prompt(spelled, pictures=[picture]).numbered()).masked_fill(masked, model.mask_id)[None]
    labelled = labels >= 0
    positions, index = torch.arange(ids.shape[1])[None], labelled.nonzero().flatten()
    with torch.no_grad():
        shown = [Prompt(picture.ids, pictures=[picture])]
        ours = model(ids, positions, Masked(None), index, labels[labelled], pictures=shown)
    torch.testing.assert_close(ours, logp[labelled], atol=1e-4, rtol=0)
    trained = ours[masked[labelled]]
    assert len(trained) == facts["num_masked"] and int(labelled.sum()) == facts["num_labels"]
    weight = 1.0 / (facts["p_mask"] * facts["num_labels"])
    assert nll_of(trained, torch.full_like(trained, weight)) == pytest.approx(facts["loss"], abs=1e-3)
    assert nll_of(trained, torch.full_like(trained, 1 / len(trained))) == pytest.approx(facts["mean_loss"], abs=1e-4)
