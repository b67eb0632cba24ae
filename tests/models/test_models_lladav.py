"""LLaDA-V: tower, tiles, prompts and layout against vectors of the original code."""

import json
import shutil
import weakref

import pytest
import torch
from helpers import GOLDEN, golden_lladav
from PIL import Image
from safetensors.torch import load_file, save_file

from data.templates import chat_family
from models import Prompt, load_model
from models.attention import Masked
from models.spec import CheckpointSpec
from models.tiny import tiny_checkpoint, tiny_model
from models.vision.images import ImageFault, open_image
from models.vision.tiles import TileGrid, placed, plan, tiles

FOLDER = GOLDEN / "lladav_vision"
SHOWN = json.loads((FOLDER / "vision.json").read_text())["images"]
PROMPTS = json.loads((FOLDER / "prompts.json").read_text())
VECTORS = load_file(FOLDER / "vision.safetensors")


def close(found, wanted, tolerance):
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER)


def image_of(name):
    return FOLDER / SHOWN[name]["file"]


def test_tiles_lie_where_the_original_lays_them():
    cases = json.loads((FOLDER / "geometry.json").read_text())["cases"]
    sizes = tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7))
    grid = TileGrid(384, 27, sizes, most=4)
    for case in cases:
        found = plan(tuple(case["size_wh"]), "anyres", grid)
        resized, corner = placed(tuple(case["size_wh"]), tuple(384 * n for n in found.grid))
        assert found.num_tokens == case["num_tokens"]
        for name, value in (
            ("grid_wh", found.grid), ("unpadded_hw", found.unpadded), ("merged_hw", found.merged),
            ("resized_wh", resized), ("paste_xy", corner),
        ):  # fmt: skip
            assert list(value) == case[name], (case["size_wh"], name)


def test_a_strip_of_any_shape_has_a_row_of_features():
    grid = TileGrid(384, 27, tuple((384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7)), most=4)
    for size in ((1, 1), (1, 20000), (20000, 1), (3, 5000), (5000, 3)):
        assert min(plan(size, "anyres", grid).merged) >= 1


@pytest.mark.parametrize("name", SHOWN)
def test_tiles_tower_and_features_are_the_originals(model, name):
    for fit, prefix in (("anyres", name), ("pad", f"{name}.pad")):
        if f"{prefix}.tiles" not in VECTORS:
            continue
        pixels = torch.from_numpy(tiles(open_image(image_of(name)), fit, model.vision.grid))
        assert torch.equal(pixels, VECTORS[f"{prefix}.tiles"])
        (picture,) = model.encode_images([image_of(name)], fit=fit)
        outlined = model.vision.outline(Image.open(image_of(name)).size, fit, 0)
        assert picture.ids == [-200] * len(picture.features) == outlined.ids
        close(picture.features, VECTORS[f"{prefix}.features"], 1e-4)
        if f"{prefix}.tower" in VECTORS:
            with torch.no_grad():
                close(model.vision.look(pixels), VECTORS[f"{prefix}.tower"], 1e-4)


def spelled_out(ids, pictures):
    """The original's ids, with every picture's positions in place of its one -200."""
    shown = iter(pictures)
    return [i for one in ids for i in (next(shown).ids if one == -200 else [one])]


@pytest.mark.parametrize("case", PROMPTS["prompts"], ids=lambda case: case["name"])
def test_prompts_are_the_originals_with_the_token_after_a_picture(model, case):
    turns = [(message["role"], message["content"]) for message in case["messages"]]
    text = chat_family("lladav").conversation(turns)
    assert text == case["text"] == chat_family("lladav").conversation(turns[1:])
    prompt = model.prompt(text, [image_of(name) for name in case["images"]])
    assert prompt.ids == spelled_out(case["ids_whole"], prompt.pictures)
    if case["images"]:
        suffix = ".pad" if case["image_mode"] == "pad" else ""
        close(prompt.features, torch.cat([VECTORS[f"{name}{suffix}.features"] for name in case["images"]]), 1e-4)
    lost = spelled_out(case["ids"], prompt.pictures)
    assert len(lost) == case["expanded_length"]
    masked = torch.tensor([[*lost, *[model.mask_id] * PROMPTS["num_masks"]]])
    logits = model.logits(masked, features=prompt.features)
    close(
        logits[0, -PROMPTS["num_last_positions"] :],
        load_file(FOLDER / "logits.safetensors")[f"{case['name']}.logits"],
        1e-4,
    )


@pytest.fixture(scope="module")
def first_set(tmp_path_factory):
    return golden_lladav(tmp_path_factory.mktemp("first") / "lladav")


def test_features_of_the_first_set_are_the_originals(first_set):
    folder = first_set
    model, golden = load_model(folder), load_file(folder / "logits.safetensors")
    pixels = ((golden["pixel_values"] * 0.5 + 0.5) * 255).round().to(torch.uint8)
    with torch.no_grad():
        values = (pixels.float() / 255 - 0.5) / 0.5
        if torch.allclose(values, golden["pixel_values"], atol=1e-6):
            close(model.vision.look(pixels), golden["vision_features"], 1e-4)
        seen = golden["vision_features"]
        close(model.vision.projector(seen), golden["projected_features"], 1e-4)
        for name in ("mm_square", "mm_wide", "mm_tall"):
            count = int(golden[f"{name}.num_pixel_values"])
            layout = plan(tuple(golden[f"{name}.image_size_wh"].tolist()), "anyres", model.vision.grid)
            features = model.vision.lay_out(golden["projected_features"][:count], layout)
            ids = golden[f"{name}.input_ids"][0].tolist()
            whole = torch.tensor([[i for one in ids for i in ([-200] * len(features) if one == -200 else [one])]])
            close(model.logits(whole, features=features), golden[f"{name}.logits"], 1e-4)


def test_an_untouched_checkpoint_is_saved_bit_by_bit(model, tmp_path):
    model.save(tmp_path)
    before, after = load_file(FOLDER / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for name in ("vision_tower_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == json.loads((FOLDER / "config.json").read_text())


def test_ids_and_decoding_of_the_family(model):
    ids = model.tokenizer.get_vocab()
    assert (model.image_id, model.mask_id) == (-200, ids["<|mdm_mask|>"])
    assert model.end_of_response_id == ids["<|eot_id|>"] in model.eos_ids
    assert model.decoding.stop_narrows and model.attention == "full"
    assert CheckpointSpec.read(FOLDER).positions == 1024


def test_a_tower_whose_shape_no_file_names_is_named(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("images", "*.json"))
    for name in ("config.json", "generation_config.json"):
        shutil.copy(FOLDER / name, tmp_path / "model")
    with pytest.raises(ValueError, match="3 x 3 patches of 10 px.*image_size 384.*vision_tower_config.json"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mm_projector_type", "pooler"),
        ("image_aspect_ratio", "square"),
        ("mm_patch_merge_type", "flat"),
        ("image_grid_pinpoints", [[17, 16]]),
    ],
)
def test_what_llada_v_does_otherwise_is_refused_by_name(tmp_path, key, value):
    with pytest.raises(ValueError, match=key):
        tiny_checkpoint(tmp_path, "lladav", **{key: value})


def test_pinpoints_may_be_a_range_of_tiles():
    assert tiny_model("lladav", image_grid_pinpoints="(1x1),...,(2x2)").vision.grid == tiny_model("lladav").vision.grid


def test_vision_is_frozen_unless_a_part_of_it_is_trained():
    model = tiny_model("lladav")
    (picture,) = model.encode_images([Image.effect_noise((40, 20), 60).convert("RGB")])
    prompt = Prompt([*picture.ids, 5], pictures=[picture])

    def moved():
        model.zero_grad()
        ids, place = torch.tensor([[*prompt.numbered(), 6, 7]]), torch.arange(len(prompt.ids) + 2)[None]
        logp = model(ids, place, Masked(None), torch.tensor([len(prompt.ids)]), torch.tensor([6]), pictures=[prompt])
        logp.sum().backward()
        return {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}

    assert not any(name.startswith("vision.") for name in moved())
    model.train_vision("projector")
    projector = {name for name, _ in model.named_parameters() if name.startswith(("vision.projector", "vision.image_"))}
    assert {name for name in moved() if name.startswith("vision.")} == projector
    model.train_vision("all")
    sees = {name for name, _ in model.named_parameters() if name.startswith("vision.") and "post_layernorm" not in name}
    # The bias of keys moves every score of a query alike, which a softmax does not see.
    assert {name for name in moved() if name.startswith("vision.")} >= {n for n in sees if "k_proj.bias" not in n}
    with pytest.raises(ValueError, match="train_vision=all: the model has no vision"):
        tiny_model("sdar").train_vision("all")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_features_with_gradients_are_those_without(checkpointing):
    model = tiny_model("lladav").train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    (picture,) = model.encode_images([Image.effect_noise((21, 50), 60).convert("RGB")])
    prompt = Prompt(picture.ids, pictures=[picture])
    frozen = model.features_of([prompt])
    for part in ("projector", "all"):
        model.train_vision(part)
        assert torch.equal((rows := model.features_of([prompt])).detach(), frozen)
        rows.sum().backward()
    assert all(layer.gradient_checkpointing is checkpointing for layer in model.vision.tower.encoder.layers)
    model.train_vision("projector")
    (picture,) = model.encode_images([Image.effect_noise((21, 50), 60).convert("RGB")])
    assert picture.features is not None and picture.source.seen is not None  # the tower is run once


def test_a_tiny_random_checkpoint_is_saved_and_read_again(tmp_path):
    first = load_model(tiny_checkpoint(tmp_path / "a", "lladav"))
    first.save(tmp_path / "b")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert "model.image_newline" in before and "model.mm_projector.2.weight" in before


def test_weights_beside_the_tower_are_missed_by_name(tmp_path):
    tiny_checkpoint(tmp_path, "lladav")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.image_newline"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="missing .*model.image_newline"):
        load_model(tmp_path)


def test_a_picture_that_is_forgotten_is_read_again_from_its_file(tmp_path):
    """Neither features nor pixels stay in memory; a file that holds another picture by then is named."""
    model, file = tiny_model("lladav"), tmp_path / "a.png"
    Image.effect_noise((21, 50), 60).convert("RGB").save(file)
    (picture,) = model.encode_images([file])
    want, pixels = picture.features.clone(), weakref.ref(picture.source)
    picture.forget()
    assert pixels() is None
    assert torch.equal(picture.features, want) and picture.source.pixels.shape[0] > 1
    picture.forget()
    Image.effect_noise((21, 50), 90).convert("RGB").save(file)
    with pytest.raises(ImageFault, match="changed .its file holds another picture"):
        _ = picture.features


def test_a_whole_copy_of_vision_encodes_as_the_model_does():
    model, image = tiny_model("lladav"), Image.effect_noise((21, 50), 60).convert("RGB")
    want = model.encode_images([image])[0].features
    names = {name for name, _ in model.named_parameters()}
    model.keep_whole_vision(torch.float32, torch.device("cpu"))
    with torch.no_grad():
        for weight in model.vision.parameters():
            weight.zero_()
    assert torch.equal(model.encode_images([image])[0].features, want)
    assert {name for name, _ in model.named_parameters()} == names
