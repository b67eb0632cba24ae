"""Pictures as codes: MAGVIT-v2 and MMaDA's prompts, against vectors of the original code."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import GOLDEN
from PIL import Image
from safetensors.torch import load_file, save_file

from data.templates import chat_family
from models import load_model
from models.tiny import tiny_model
from models.vision.codes import FITS, special_ids
from models.vision.drawing import as_images
from models.vision.images import open_image
from models.vision.magvit import load_magvit

MAGVIT, MMADA = GOLDEN / "magvit", GOLDEN / "mmada_mmu"
FACTS = json.loads((MAGVIT / "magvit.json").read_text())
PROMPTS = json.loads((MMADA / "prompts.json").read_text())
VECTORS = load_file(MAGVIT / "codes.safetensors")


def picture_of(case):
    name, fit = case.split(".")
    return MAGVIT / FACTS["images"][name]["file"], fit


@pytest.fixture(scope="module")
def tokenizer():
    return load_magvit(MAGVIT)


@pytest.fixture(scope="module")
def model():
    return load_model(MMADA, image_tokenizer=str(MAGVIT))


@pytest.mark.parametrize("case", FACTS["cases"])
def test_codes_and_decoded_pixels_are_those_of_the_original(tokenizer, case):
    pixels, codes = VECTORS[f"{case}.pixels"], VECTORS[f"{case}.codes"]
    assert torch.equal(tokenizer.encode(pixels.float() / 127.5 - 1.0), codes)
    if f"{case}.decoded" in VECTORS:
        shape = (pixels.shape[1] // 4, pixels.shape[2] // 4) if case == "rect" else None
        (decoded,) = tokenizer.decode(codes[None], shape)
        torch.testing.assert_close(decoded, VECTORS[f"{case}.decoded"], atol=1e-4, rtol=0)
    if case != "rect":
        path, fit = picture_of(case)
        assert np.array_equal(np.asarray(FITS[fit](open_image(path), FACTS["resolution"])), pixels.permute(1, 2, 0))


def test_a_copy_of_the_model_takes_pictures_on_its_own_device(model):
    copied = model.copy_as(torch.float32)
    assert copied.vision.model is copied and model.vision.model is model
    on_meta = model.twin(lambda weight: torch.empty_like(weight, device="meta"))
    assert on_meta.vision.model.device.type == "meta" and on_meta.vision == model.vision


def test_a_code_has_the_bits_of_its_entry():
    from models.vision.magvit import Half, Magvit, Sizes

    tokenizer = Magvit(Sizes(13, Half(32, ((32,),)), Half(32, ((32,),))))
    for row in FACTS["codebook_13_bits"]:
        entry = tokenizer.entries(torch.tensor([[[row["code"]]]]))
        assert entry.flatten().tolist() == row["entry"]
        assert tokenizer.codes(entry[0]).item() == row["code"]
    assert tokenizer.codes(torch.zeros(13, 1, 1)).item() == 0


def test_an_image_tokenizer_saved_again_has_the_same_weights(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    before, after = (load_file(folder / "pytorch_model.safetensors") for folder in (MAGVIT, tmp_path))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((MAGVIT / "config.json").read_text())
    assert load_magvit(tmp_path).codebook_size == 64


def test_several_pictures_decode_as_each_does_alone(tokenizer, monkeypatch):
    codes = torch.randint(64, (5, 16), generator=torch.Generator().manual_seed(0))
    together = tokenizer.decode(codes)
    monkeypatch.setattr("models.vision.magvit._DECODED_PIXELS", 600)
    torch.testing.assert_close(tokenizer.decode(codes), together, atol=1e-5, rtol=0)
    torch.testing.assert_close(tokenizer.decode(codes[3:4])[0], together[3], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("codes", "shape", "message"),
    [
        ([[1, 2, 3]], None, "3 codes do not fill a square"),
        ([[1, 2, 3, 4]], (1, 3), r"4 codes do not fill shape=\(1, 3\)"),
        ([[1, 2, 3, 64]], None, "the code 64 is not in the codebook of 64"),
        ([[1, 2, -3, 4]], None, "the code -3 is not"),
    ],
)
def test_codes_that_are_no_picture_are_named(model, codes, shape, message):
    with pytest.raises(ValueError, match=message):
        model.decode_images(torch.tensor(codes), shape)


@pytest.mark.parametrize("where", ["text", "placeholder", "one by one"])
def test_prompts_with_pictures_are_those_of_the_original(model, where):
    for row in PROMPTS["prompts"]:
        path, fit = picture_of(row["image"])
        text = f"<image>\n{row['text']}" if where == "placeholder" else row["text"]
        if where == "one by one":
            (picture,) = model.encode_images([path], fit=fit, resolution=FACTS["resolution"])
            assert picture.features is None
            prompt = model.prompt(text, [picture])
        else:
            prompt = model.prompt(text, [path], fit="auto" if fit == "pad" else fit, resolution=FACTS["resolution"])
        assert prompt.ids == row["ids"] and prompt.features is None
    assert model.image_id is None and model.text_vocab_size == PROMPTS["image_offset"]


def test_logits_behind_pictures_are_those_of_the_original(model):
    wanted = load_file(MMADA / "logits.safetensors")
    for row in PROMPTS["prompts"]:
        ids = torch.tensor([row["ids"] + [model.mask_id] * PROMPTS["num_masks"]])
        got = model.logits(ids)[0, -PROMPTS["num_last_positions"] :]
        torch.testing.assert_close(got, wanted[f"{row['name']}.logits"], atol=1e-4, rtol=0)


def test_the_checkpoint_is_saved_as_it_was_without_the_image_tokenizer(model, tmp_path):
    model.encode_images([picture_of("wide.pad")[0]], resolution=32)
    model.save(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (MMADA, tmp_path))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not list(tmp_path.glob("pytorch_model*"))


@pytest.mark.parametrize("name", ["rl_box", "rl_think", "eval_option"])
def test_one_wording_has_a_line_break_after_the_users_header(name):
    """dLLM-RL's RL prompts have it, its evaluation's lack it; here both do."""
    wanted = PROMPTS["templates"][name].replace("{{problem}}", "Q")
    wanted = wanted.replace("<|end_header_id|>This", "<|end_header_id|>\nThis")
    turn = wanted.split("user<|end_header_id|>\n")[1].split("<|eot_id|>")[0]
    got = chat_family("mmada").conversation([("user", f"<image>\n{turn}")])
    assert got == wanted.replace("user<|end_header_id|>\n", "user<|end_header_id|>\n<image>\n")
    text_alone = chat_family("mmada").conversation([("user", turn)])
    assert text_alone == chat_family("llada").conversation([("user", turn)])


def test_pictures_stand_before_the_text_wherever_it_names_them(model):
    first, second = model.encode_images([picture_of("wide.pad")[0], picture_of("tall.pad")[0]], resolution=32)
    special = model.vision.special
    ids = model.prompt("ab<image>\ncd<image>e", [first, second]).ids
    pictures = [special.begin, *first.ids, special.end, special.begin, *second.ids, special.end]
    assert ids == [special.understand, *pictures, *model.tokenizer("abcde")["input_ids"]]
    assert len(model.vision.outline((9, 7), "pad", 32).ids) == len(first.ids) == model.picture_codes(32)


def test_special_ids_have_their_published_numbers_where_a_tokenizer_lacks_the_names(model):
    ids, named = PROMPTS["special_ids"], special_ids(model.tokenizer)
    assert named == (ids["<|soi|>"], ids["<|eoi|>"], ids["<|t2i|>"], ids["<|mmu|>"], ids["<|sot|>"], ids["<|eot|>"])

    class Bare:
        def get_vocab(self):
            return {"<|soi|>": 7, "<|reserved_token_0|>": 8}

    assert special_ids(Bare()) == (7, 126085, 126088, 126089, 126080, 126081)


def test_what_is_missing_for_pictures_is_named(tmp_path, caplog):
    alone = load_model(MMADA)
    with pytest.raises(ValueError, match="model.vq_model_path"):
        alone.prompt("a", [picture_of("wide.pad")[0]])
    with pytest.raises(ValueError, match="multiple of 4"):
        load_model(MMADA, image_tokenizer=str(MAGVIT)).encode_images([picture_of("wide.pad")[0]], resolution=30)
    with pytest.raises(ValueError, match="no MAGVIT-v2"):
        load_model(MMADA, image_tokenizer=str(MMADA)).encode_images([picture_of("wide.pad")[0]], resolution=32)
    shutil.copytree(MMADA, tmp_path / "bare", ignore=shutil.ignore_patterns("token*", "special*"))
    bare = load_model(tmp_path / "bare")
    assert "no tokenizer" in caplog.text and bare.text_vocab_size == PROMPTS["llm_vocab_size"]
    with pytest.raises(ValueError, match="takes no pictures"):
        bare.encode_images([picture_of("wide.pad")[0]])
    with pytest.raises(ValueError, match="no tokenizer"):
        load_model(tmp_path / "bare", image_tokenizer=str(MAGVIT))
    with pytest.raises(ValueError, match="draws no pictures"):
        tiny_model("llada").drawing_prompt("a")


def test_weights_of_another_shape_are_no_image_tokenizer(tmp_path):
    shutil.copytree(MAGVIT, tmp_path / "cut")
    weights = load_file(MAGVIT / "pytorch_model.safetensors")
    weights["encoder.mid.attn_1.q.weight"] = weights["encoder.mid.attn_1.q.weight"][:8].clone()
    save_file(weights, tmp_path / "cut" / "pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"not those of a MAGVIT-v2: encoder.mid.attn_1.q.weight"):
        load_magvit(tmp_path / "cut")


def test_decoded_pixels_become_pictures():
    black, white = as_images(torch.stack([torch.full((3, 2, 4), -1.7), torch.full((3, 2, 4), 1.0)]))
    assert (black.mode, black.size) == ("RGB", (4, 2))
    assert (black.getpixel((0, 0)), white.getpixel((3, 1))) == ((0, 0, 0), (255, 255, 255))
    assert Image.Image is type(black)
