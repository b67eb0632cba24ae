"""Pictures in the trace viewer: thumbnails from the run's list, boxes where there are none."""

import base64
import io
import json

import pytest
from PIL import Image
from test_sample_trace_viewer import row, word_tokenizer, write

from models.vision.images import image_digest
from sample.viewer import pictures as viewer_pictures
from sample.viewer.page import Origin, build_page, main, page_data
from sample.viewer.pictures import LIST, Thumbnails, picture_runs
from sample.viewer.trace import read_traces

PROMPT = [5, *[-200] * 3, 6, *[-200] * 2, 7]


@pytest.fixture
def run(tmp_path):
    """A run's folder with two pictures in its list, one in the folder itself, and a digest without a file."""
    found = {"0" * 16: "gone.png"}
    for name, size in (("wide.png", (400, 100)), ("small.png", (4, 4))):
        Image.new("RGB", size, "red").save(tmp_path / name)
        found[image_digest(tmp_path / name)] = name if name == "small.png" else str(tmp_path / name)
    (tmp_path / LIST).write_text(json.dumps(found))
    return tmp_path


def shown(run, *rows):
    chosen = read_traces(write(run / "rollouts.jsonl", rows), 9)
    return page_data("x", chosen, Origin(None, "full", 4), thumbnails=Thumbnails(run))


def test_runs_of_a_prompt():
    assert list(picture_runs([], 9)) == []
    assert list(picture_runs([1, -2, -2, 3], 9)) == [(0, 1, False), (1, 3, True), (3, 4, False)]
    assert list(picture_runs([1, 12, 9, 8], 9)) == [(0, 1, False), (1, 3, True), (3, 4, False)]
    assert list(picture_runs([1, 12], None)) == [(0, 2, False)]


def test_a_picture_is_one_box_with_its_thumbnail(run):
    gone, wide, small = json.loads((run / LIST).read_text())
    data = shown(run, row(prompt_ids=PROMPT, images=[wide, small]), row(prompt_ids=PROMPT, images=[gone]))
    (first, uri), (second, _), *boxes = data["pictures"]
    assert (first, second) == (3, 2) and boxes == [(3, None), (2, None)]
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.size == (192, 48)
    assert uri.startswith("data:image/jpeg") and data["pictures"][1][1].startswith("data:image/png")  # a small one
    (group,) = data["groups"]
    assert [[i for i in prompt if i < 0] for prompt in group["prompts"]] == [[-1, -2], [-3, -4]]
    assert all(i >= 0 for i in group["samples"][0]["tokens"])


def test_codes_beyond_the_tokenizer_are_a_picture(run):
    chosen = read_traces(write(run / "x.jsonl", [row(prompt_ids=[20, 30, 31, 21])]), 9)
    data = page_data("x", chosen, Origin(word_tokenizer("ab"), "full", 4))
    assert data["pictures"] == [(2, None)] and data["groups"][0]["prompts"][0][1] == -1


def test_a_picture_that_changed_or_is_none_has_no_thumbnail(run):
    files = json.loads((run / LIST).read_text())
    wide = next(digest for digest, path in files.items() if path.endswith("wide.png"))
    Image.new("RGB", (400, 100), "blue").save(run / "wide.png")
    assert Thumbnails(run)[wide] is None
    (run / LIST).write_text(json.dumps(files | {"list": ["a"], "folder": str(run)}))
    assert Thumbnails(run)["list"] is None and Thumbnails(run)["folder"] is None


def test_a_page_has_so_many_thumbnails_at_most(run, monkeypatch):
    monkeypatch.setattr(viewer_pictures, "MOST_PICTURES", 1)
    _, wide, small = json.loads((run / LIST).read_text())
    thumbnails = Thumbnails(run)
    assert thumbnails[wide] is not None and thumbnails[small] is None and thumbnails[wide] is not None


def test_the_command_embeds_pictures_and_the_policy_lets_them_show(run):
    digest = next(digest for digest, path in json.loads((run / LIST).read_text()).items() if path == "small.png")
    write(run / "rollouts.jsonl", [row(prompt_ids=PROMPT, images=[digest, "</script>"])])
    assert main([str(run), "-o", str(run / "trace.html")]) == 0
    page = (run / "trace.html").read_text()
    assert "img-src data:" in page and "data:image/png;base64," in page
    assert "data:image" not in build_page("x", read_traces(run / "rollouts.jsonl", 9), Origin(None, None, None))
