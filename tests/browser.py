"""Pages in headless Chromium: screenshots, and what scripts of a page made of it."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


def _run(page, *options, fragment=""):
    with tempfile.TemporaryDirectory() as profile:
        fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
        given = [f"--user-data-dir={profile}", "--virtual-time-budget=4000", *options, f"{page.as_uri()}{fragment}"]
        command = [CHROMIUM, *fixed, *given]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)


def document_of(page, fragment=""):
    """The document as HTML after its scripts ran, and what they reported."""
    done = _run(page, "--dump-dom", "--enable-logging=stderr", fragment=fragment)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def screenshot(page, path, width, height, fragment="", colours=64):
    """The page at so many pixels as a small PNG. Windows of Chromium are 500 pixels wide at least: a narrower page is
    shown in a frame of its width."""
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "shot.png"
        shown, size = page, f"{width},{height}"
        if width < 500:
            shown = Path(folder) / "frame.html"
            shown.write_text(
                f"<style>body{{margin:0}}iframe{{border:0;display:block}}</style><iframe width={width} height={height} "
                f'src="{page.as_uri()}{fragment}"></iframe>'
            )
            size = f"500,{height}"
        _run(shown, f"--window-size={size}", f"--screenshot={taken}", fragment="" if shown is not page else fragment)
        image = Image.open(taken).convert("RGB").crop((0, 0, width, height))
        image.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        return image
