"""The pages as people see them. `DLLM_SCREENSHOTS=docs/img pytest -m browser` keeps the screenshots of the docs."""

import os
import re
from pathlib import Path

import pytest
from browser import document_of, needs_chromium, screenshot
from commands import finish, start
from run_folders import rl_run

from sample.viewer.report import main

pytestmark = [pytest.mark.browser, needs_chromium, pytest.mark.timeout(600)]


def pages_of(first, second):
    """The pages of a run, and of it beside another."""
    comparison = first.parent / "comparison.html"
    assert main([str(first)]) == 0
    assert main([str(first), str(second), "-o", str(comparison)]) == 0
    return {"report": first / "report.html", "comparison": comparison, "trace": first / "trace.html"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Of made-up runs, with nasty text among their samples."""
    folder = tmp_path_factory.mktemp("runs")
    first = rl_run(folder / "rl_tiny-1")
    return pages_of(first, rl_run(folder / "rl_tiny-fast", "rl_tiny-fast", better=0.12, seed=2, rate=2e-4))


@pytest.fixture(scope="module")
def real_pages(tmp_path_factory):
    """Of the demo, and of it at twice the learning rate, 24 steps each."""
    folder = tmp_path_factory.mktemp("demo")
    given = ["config=configs/rl_tiny.yaml", f"experiment.output_dir={folder}", "experiment.total_step=24"]
    given += ["experiment.eval_every=8", "experiment.threads=1", f"dataset.folder={folder / 'data'}"]
    (folder / "data").mkdir()
    for more in ((), ("experiment.project=rl_tiny-fast", "optimizer.params.learning_rate=2e-4")):
        status, *said = finish(start(["rl.py", *given, *more]), timeout=1400)
        assert status == 0, said
    found = pages_of(folder / "rl_tiny-1", folder / "rl_tiny-fast")
    for page in found.values():  # where they would be for a user
        page.write_text(page.read_text().replace(f"{folder}/", "runs/"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_scripts_of_a_page_run_without_an_error_and_draw(name, pages):
    document, reported = document_of(pages[name])
    assert not reported
    assert document.count("<figure>") > 15 and 'class="curve"' in document
    assert "taken" not in re.search("<title>(.*?)</title>", document)[1] and "<img" not in document


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1300, 1500), (390, 1500)])
@pytest.mark.parametrize("name", ["report", "comparison", "trace"])
def test_pages_fit_their_window_in_both_themes(name, width, height, theme, real_pages, tmp_path):
    height = 760 if name == "trace" else height
    folder = Path(os.environ.get("DLLM_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{width}-{theme}.png"
    image = screenshot(real_pages[name], path, width, height, f"#theme={theme}")
    assert path.stat().st_size < 150_000
    paper = image.getpixel((width - 3, height - 3))
    assert (sum(paper) > 600) == (theme == "light")
    assert len(image.crop((0, 0, width, 400)).getcolors(10**6)) > 30  # not an empty page
