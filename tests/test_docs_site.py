"""The docs as a site: mkdocs builds it without a warning and without network, and its pages load nothing from one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("material", reason="mkdocs-material is not installed (requirements-dev.txt)")
NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, **NO_NETWORK, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_has_every_page(site):
    pages = {path.stem for path in site.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {"index", "results", "changelog"} <= pages
    assert (site / "code" / "train" / "rl.py").read_text() == (ROOT / "train" / "rl.py").read_text()


@pytest.mark.slow
def test_pages_load_nothing_from_a_network(site):
    for page in site.glob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe)[^>]*>", page.read_text())
        assert not [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)], page.name


@pytest.mark.slow
def test_a_table_with_bars_in_its_cells_and_a_list_are_rendered(site):
    text = (site / "config.html").read_text()
    assert "(int | None)" in text and text.count("<table>") > 10
    assert "<li>" in (site / "report.html").read_text()
