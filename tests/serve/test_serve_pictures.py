"""Pictures in a chat: data URLs, which a model that sees takes; nothing is fetched."""

import base64
import io

import pytest
from end_to_end import text_checkpoint
from helpers import GOLDEN
from PIL import Image, ImageDraw
from pydantic import ValidationError
from serving import serving

from models import load_model
from sample import Sampler, SamplingConfig
from serve.loading import Reader
from serve.pictures import picture_of
from serve.protocol import ChatAsked
from serve.settings import ServeSettings


def picture(left=2):
    image = Image.new("RGB", (24, 16), "white")
    ImageDraw.Draw(image).rectangle((left, 2, left + 6, 9), fill="red")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def url(content):
    return "data:image/png;base64," + base64.b64encode(content).decode()


def part(where):
    return {"type": "image_url", "image_url": {"url": where}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return text_checkpoint(tmp_path_factory.mktemp("sees") / "model", "lladav", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder, max_slots=2, max_new_tokens=8, block_size=4, steps_per_block=4) as running:
        yield running


def asked(server, *parts, **more):
    return server.post("/v1/chat/completions", messages=[{"role": "user", "content": list(parts)}], **more)


@pytest.mark.slow
def test_an_answer_about_a_picture_is_the_sampler_s(server, folder):
    text = {"type": "text", "text": "12="}
    more = {"seed": 3, "step_map": True, "max_tokens": 8}
    answers = [asked(server, part(url(picture(left))), text, **more).json()["choices"][0] for left in (2, 12)]
    model = load_model(folder)
    reader = Reader(model, ServeSettings(model=str(folder)))
    config = SamplingConfig(max_new_tokens=8, block_size=4, steps_per_block=4, threshold=0.4, temperature=1.0, seed=3)
    prompts = [reader.chat([("user", "<image>\n12=")], [picture(left)]) for left in (2, 12)]
    for answer, rollout in zip(answers, Sampler(model, config).generate(prompts), strict=True):
        count = len(rollout.token_ids) - (rollout.finish_reason == "stop")
        assert answer["token_ids"] == rollout.token_ids[:count]
    assert prompts[0].rows > 0 and prompts[0].digests != prompts[1].digests


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([part("https://example.com/a.png")], "this server fetches nothing"),
        ([part("file:///etc/passwd")], "this server fetches nothing"),
        ([part("data:image/png;base64,@@@")], "no base64"),
        ([part(url(b"no picture"))], "not a picture"),
        ([part(url(picture()))] * 17, "17 pictures: at most 16"),
        ([part(url(picture())), {"type": "text", "text": "a <image> b"}], "<image> in a text stands for a picture"),
        ([{"type": "input_audio", "input_audio": {}}], "'text', 'image_url'"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(server, parts, says):
    answer = asked(server, *parts)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded():
    file = io.BytesIO()
    Image.new("1", (5000, 5000)).save(file, "PNG")
    with pytest.raises(ValueError, match="5000 x 5000 pixels"):
        picture_of(url(file.getvalue()))


def test_only_formats_that_are_cheap_to_look_at_are_opened():
    """Pillow decodes an icon to tell its size, and starts Ghostscript for EPS."""
    for kind in ("ICO", "EPS", "TIFF"):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, kind)
        with pytest.raises(ValueError, match="not a picture"):
            picture_of(url(file.getvalue()))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, kind)
        assert picture_of(url(file.getvalue())) == file.getvalue()


def test_pictures_are_counted_before_any_is_read(monkeypatch):
    monkeypatch.setattr("serve.protocol.picture_of", lambda url: pytest.fail("a picture is read"))
    messages = [{"role": "user", "content": [part(url(b"no picture"))] * count} for count in (9, 8)]
    with pytest.raises(ValueError, match="17 pictures: at most 16"):
        ChatAsked.model_validate({"messages": messages})
    for messages in (None, [None, {"content": 3}], 7):  # malformed: pydantic's own error
        with pytest.raises(ValidationError, match="messages"):
            ChatAsked.model_validate({"messages": messages})


@pytest.mark.slow
def test_a_model_of_text_alone_says_so(model_folder):
    with serving(model_folder, max_slots=1) as server:
        answer = asked(server, part(url(picture())))
        assert answer.status_code == 400 and "takes no pictures" in answer.json()["error"]["message"]
        system = server.post(
            "/v1/chat/completions", messages=[{"role": "system", "content": [part(url(picture()))]}]
        ).json()
        assert "a picture in a message of the system" in system["error"]["message"]


@pytest.mark.slow
def test_pictures_that_become_codes_need_their_tokenizer():
    text = {"type": "text", "text": "12="}
    shared = {"max_slots": 1, "max_new_tokens": 8, "block_size": 4, "steps_per_block": 4, "image_resolution": 32}
    with serving(GOLDEN / "mmada_mmu", vq_model_path=str(GOLDEN / "magvit"), **shared) as server:
        answers = [asked(server, part(url(picture(left))), text, seed=1, max_tokens=8) for left in (2, 12)]
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [8, 8]
        assert answers[0].json()["usage"]["prompt_tokens"] > 64
    with serving(GOLDEN / "mmada_mmu", **shared) as server:
        answer = asked(server, part(url(picture())), text)
        assert answer.status_code == 400 and "set model.vq_model_path" in answer.json()["error"]["message"]
