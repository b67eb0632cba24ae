"""Similarity of pictures and texts by a tiny random CLIP model."""

import json
import shutil

import pytest
import torch
from end_to_end import TOKENIZER
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from train.setup.clip import Clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    text = sizes | {"vocab_size": 40, "max_position_embeddings": 6}
    config = CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 8, "patch_size": 4}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder


def test_pairs_are_scored_each_alone(folder, tmp_path):
    for name, size in (("square", (8, 8)), ("wide", (40, 8)), ("tall", (3, 90))):
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / f"{name}.png")
    clip = Clip(str(folder), torch.device("cpu"))
    pictures = [str(tmp_path / f"{name}.png") for name in ("square", "wide", "tall")]
    texts = ["12", "3+4=", "9" * 50]
    together = clip(pictures, texts)
    alone = [clip([picture], [text])[0] for picture, text in zip(pictures, texts, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5) and len({round(value, 4) for value in together}) == 3
    model, ids = CLIPModel.from_pretrained(folder).eval(), torch.tensor([clip.tokenizer("12")["input_ids"]])
    pixels = (
        torch.tensor(list(Image.open(pictures[0]).get_flattened_data())).view(8, 8, 3).permute(2, 0, 1)[None] / 127.5
        - 1.0
    )
    with torch.inference_mode():
        output = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids))
    expected = torch.cosine_similarity(output.image_embeds, output.text_embeds).item()
    assert together[0] == pytest.approx(expected, abs=1e-5)


def test_a_folder_without_a_clip_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="reward.clip_model: .*holds no CLIP model"):
        Clip(str(tmp_path), torch.device("cpu"))
