"""Pictures as they are opened, and the record by which they stand in prompts."""

import io
import pickle
import subprocess
import sys

import pytest
import torch
from PIL import Image

from models import Picture, Prompt
from models.tiny import tiny_model
from models.vision import images
from models.vision.images import ImageFault, image_digest, image_size, open_image


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(mode="RGB", size=(6, 4)):
    values = bytes((i * 7) % 256 for i in range(len(mode) * size[0] * size[1]))
    return Image.frombytes(mode, size, values)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("absent.png", "missing"),
        ("text.png", "not a picture"),
        ("empty.png", "not a picture"),
        ("cut.png", "truncated"),
        ("cut.jpg", "truncated"),
        (".", "unreadable"),
    ],
)
def test_a_picture_that_cannot_be_used_is_named_with_its_cause(tmp_path, name, cause):
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    for suffix, kind in (("png", "PNG"), ("jpg", "JPEG")):
        content = encoded(noise, kind)
        (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageFault, match=cause) as caught:
        open_image(tmp_path / name)
    assert (caught.value.path, caught.value.what) == (str(tmp_path / name), cause)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.path, again.what) == (str(caught.value), caught.value.path, cause)


def test_pictures_of_no_pixels_and_of_too_many_are_faults(monkeypatch):
    with pytest.raises(ImageFault, match="0 px"):
        open_image(Image.new("RGB", (0, 5)))
    content = encoded(picture(size=(20, 20)))
    for limit in (300, 100):  # Pillow warns above its limit, and fails above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for look in (open_image, image_size):
            with pytest.raises(ImageFault, match="decompression bomb"):
                look(content)
    with pytest.raises(ImageFault, match="not a picture"):
        open_image(7)


def test_grey_palette_print_and_transparent_pictures_become_rgb(monkeypatch, caplog):
    monkeypatch.setattr(images, "_warned", set())
    for mode in ("L", "RGBA", "RGBA", "LA"):
        opened = open_image(encoded(picture(mode)))
        assert opened.mode == "RGB"
        colours = picture(mode).convert("RGBA").get_flattened_data()
        assert list(opened.get_flattened_data()) == [
            pixel[:3] for pixel in colours
        ]  # the alpha is dropped, not applied
    assert list(open_image(encoded(picture().quantize(8))).get_flattened_data())
    cmyk = open_image(encoded(picture("CMYK"), "TIFF"))
    assert list(cmyk.get_flattened_data()) == list(picture("CMYK").convert("RGB").get_flattened_data())
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(gif).getpixel((0, 0)) == (255, 0, 0)
    warned = [record.getMessage() for record in caplog.records]
    assert [len([w for w in warned if word in w]) for word in ("transparency", "frames")] == [1, 1]


def test_rotation_by_exif_is_not_applied():
    exif = Image.Exif()
    exif[274] = 6
    content = encoded(picture(size=(8, 4)), "JPEG", exif=exif)
    assert open_image(content).size == image_size(content) == (8, 4)


def test_a_digest_names_the_bytes_wherever_they_lie(tmp_path):
    content = encoded(picture())
    (tmp_path / "a.png").write_bytes(content)
    assert image_digest(tmp_path / "a.png") == image_digest(content) == image_digest(str(tmp_path / "a.png"))
    assert len(image_digest(content)) == 16 and image_digest(picture()) != image_digest(picture("L"))


def test_opening_a_picture_loads_no_torch():
    code = "import sys, models.vision.images; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_prompt_has_as_many_rows_of_features_as_positions_of_pictures():
    for ids, features in (([5, -200], None), ([5, -200], torch.ones(2, 3)), ([5], torch.ones(1, 3))):
        with pytest.raises(ValueError, match="positions hold an image id and there are . rows"):
            Prompt(ids, features)
    prompt = Prompt([5, -200, 6, -200, -200], torch.arange(3.0)[:, None])
    assert prompt.numbered() == [5, -1, 6, -2, -3]
    assert Prompt([5, 6]).features is None and Prompt([5, 6]).name() == ""


def test_a_picture_is_encoded_when_its_features_are_first_asked_for():
    calls = []

    def features():
        calls.append(1)
        return torch.ones(2, 3)

    seen = Picture([-200, -200], features, digest="ab")
    prompt = Prompt([1, -200, -200, -200, -200], pictures=[seen, seen])
    assert not calls and prompt.name() == "ab ab"
    assert prompt.features.shape == (4, 3) and seen.features is seen.features and calls == [1]
    prompt.forget()
    assert prompt.features.shape == (4, 3) and calls == [1, 1]


def test_the_name_of_pictures_without_digests_is_that_of_their_features():
    one, other = (Prompt([1, -200], torch.full((1, 3), value)) for value in (1.0, 2.0))
    assert one.name() != other.name() and one.name() == Prompt([4, -200], torch.ones(1, 3)).name()


class Rows:
    """Vision of a fake family: a picture is as many positions as it is wide, filled with its height."""

    image_id, fits, in_front = -200, ("whole",), False

    def __init__(self, model, image_tokenizer):
        self.width = model.hf_config.hidden_size

    def fit(self, pictures):
        return "whole"

    def outline(self, size_wh, fit, resolution):
        return Picture([self.image_id] * size_wh[0])

    def encode(self, image, fit, resolution, digest):
        return Picture([self.image_id] * image.width, torch.full((image.width, self.width), image.height / 10), digest)

    def place(self, pieces, pictures, encode):
        ids = encode(pieces[0])
        for shown, piece in zip(pictures, pieces[1:], strict=True):
            ids += shown.ids + encode(piece)
        return ids


@pytest.fixture
def seeing():
    model = tiny_model("llada")
    model.vision = Rows(model, None)
    return model


def letters(text):
    return [ord(letter) % 50 + 3 for letter in text]


def test_a_prompt_spells_its_pictures_out_in_order(seeing):
    pictures = [picture(size=(2, 3)), encoded(picture(size=(1, 4)))]
    prompt = seeing.prompt("ab<image>\n<image>c", pictures, encode=letters)
    assert prompt.ids == [*letters("ab"), -200, -200, *letters("\n"), -200, *letters("c")]
    assert prompt.features[:, 0].tolist() == pytest.approx([0.3, 0.3, 0.4])
    assert prompt.digests == [image_digest(pictures[0]), image_digest(pictures[1])]
    alone = [seeing.encode_images([p])[0].features for p in pictures]
    assert torch.equal(torch.cat(alone), prompt.features)
    for text, count in (("no place", 0), ("<image><image><image>", 3)):
        with pytest.raises(ValueError, match=f"{count} <image> and 2 pictures"):
            seeing.prompt(text, pictures, encode=letters)
    with pytest.raises(ValueError, match="image_fit is 'tall': use auto, whole"):
        seeing.encode_images(pictures, fit="tall")


def test_logits_of_pictures_are_those_of_their_rows_as_embeddings(seeing):
    ids = torch.tensor([[4, -200, 5, -200], [-200, 6, 7, 8]])
    features = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    words = torch.tensor([[4, 9, 5, 10], [11, 6, 7, 8]])
    with torch.no_grad():
        seeing.model.embed_tokens.weight[9:12] = features
    assert torch.equal(seeing.logits(ids, features=features), seeing.logits(words))
    with pytest.raises(ValueError, match="3 positions hold an image id and there are 2 rows"):
        seeing.logits(ids, features=features[:2])
    with pytest.raises(ValueError, match="3 positions hold an image id and there are 0 rows"):
        seeing.logits(ids)


def test_a_family_without_pictures_says_so():
    model = tiny_model("sdar")
    assert model.image_id is None
    with pytest.raises(ValueError, match="takes no pictures"):
        model.encode_images([picture()])
    assert model.prompt("<image>", encode=letters).ids == letters("<image>")
