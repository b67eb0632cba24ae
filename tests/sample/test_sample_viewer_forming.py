"""Drawn pictures in the trace viewer, as they form."""

import base64
import io
import json

import numpy as np
import pytest
from browser import document_of, needs_chromium
from helpers import GOLDEN
from PIL import Image
from test_sample_trace_viewer import row, write

from sample.viewer import forming
from sample.viewer.forming import Forming
from sample.viewer.page import main
from sample.viewer.trace import Trace

FIRST = 275
"""Of the golden MMaDA's codes, which are 64."""


def drawn(**more):
    """A picture of 4 x 4 codes, its rows decided one after another, from the last to the first."""
    given = {
        "suffix_ids": [261],
        "canvas_ids": [FIRST + i for i in range(16)],
        "canvas_step_map": [4 - i // 4 for i in range(16)],
        "canvas_logprobs": [-0.1] * 16,
        "num_response_tokens": 16,
    }
    return row(**given | more)


def grey_rows(uri):
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)
    assert image.shape == (16, 16, 3)
    return [bool((abs(image[4 * i + 1 : 4 * i + 3] - 127) < 12).all()) for i in range(4)]


@pytest.fixture(scope="module")
def golden():
    return Forming(GOLDEN / "magvit", FIRST)


def test_what_is_not_decided_is_grey(golden):
    frames = golden.frames(Trace.from_row(drawn()))
    assert [step for step, _ in frames] == [1, 2, 3, 4]
    assert [grey_rows(uri)[::-1] for _, uri in frames] == [[False] * n + [True] * (4 - n) for n in (1, 2, 3, 4)]


def test_frames_are_bounded_in_a_picture_and_in_a_page(monkeypatch):
    monkeypatch.setattr(forming, "MOST_FRAMES", 2)
    monkeypatch.setattr(forming, "MOST_DECODED", 3)
    found = Forming(GOLDEN / "magvit", FIRST)
    trace = Trace.from_row(drawn())
    assert [[step for step, _ in found.frames(trace)] for _ in range(3)] == [[1, 4], [1], []]
    assert found.left_out == 1


def test_texts_and_codes_of_no_picture_have_no_frames(golden):
    for wrong in ({"suffix_ids": []}, {"canvas_ids": [5] * 16}, {"canvas_step_map": [0] * 16}):
        assert golden.frames(Trace.from_row(drawn(**wrong))) == []
    three = {"canvas_ids": [FIRST] * 3, "canvas_step_map": [1] * 3, "canvas_logprobs": None, "num_response_tokens": 3}
    assert golden.frames(Trace.from_row(drawn(**three))) == []


@pytest.fixture
def run(tmp_path):
    model = {"pretrained_model": str(GOLDEN / "mmada_mmu"), "vq_model_path": str(GOLDEN / "magvit")}
    (tmp_path / "config.yaml").write_text(json.dumps({"model": model}))
    write(tmp_path / "rollouts.jsonl", [drawn()])
    return tmp_path


def test_the_command_says_where_the_image_tokenizer_is_missing(run, capsys):
    assert main([str(run), "-o", str(run / "trace.html")]) == 0
    assert '"frames":[[1,"data:image/png' in (run / "trace.html").read_text().replace(" ", "")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("golden/magvit", "golden/mmada"))
    capsys.readouterr()
    assert main([str(run), "-o", str(run / "trace.html")]) == 0
    assert "Drawn pictures are shown as codes, since" in capsys.readouterr().err


@needs_chromium
@pytest.mark.browser
@pytest.mark.slow
def test_the_page_shows_the_last_frame(run):
    main([str(run), "-o", str(run / "trace.html")])
    document, said = document_of(run / "trace.html")
    shown = document.split('id="drawn"')[1].split(">")[0]
    assert not said and "data:image/png" in shown and "hidden" not in shown
