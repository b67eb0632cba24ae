"""generate_images.py: pictures from texts, as files."""

import json
import sys

import commands
import forked
import pytest
from helpers import GOLDEN
from PIL import Image

import generate_images

ARGUMENTS = [str(GOLDEN / "mmada_mmu"), "-t", str(GOLDEN / "magvit"), "--size", "32", "--steps", "3", "--device", "cpu"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["generate_images.py", *ARGUMENTS, *map(str, arguments)])
    generate_images.main()


def test_each_text_gets_its_pictures_and_a_later_call_adds_to_them(monkeypatch, tmp_path, capsys):
    (tmp_path / "more.txt").write_text("two squares\n\n")
    run(monkeypatch, "cat", "--texts-file", tmp_path / "more.txt", "-n", 2, "-o", tmp_path / "out")
    run(monkeypatch, "cat", "-n", 2, "-o", tmp_path / "out", "--slots", 1)
    run(monkeypatch, "cat", "-o", tmp_path / "out", "--seed", 1)
    rows = [json.loads(line) for line in (tmp_path / "out" / "pictures.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["cat"] * 2 + ["two squares"] * 2 + ["cat"] * 3
    assert [row["file"] for row in rows] == [f"{i:05d}.png" for i in range(7)]
    pictures = [Image.open(tmp_path / "out" / row["file"]) for row in rows]
    assert {(picture.mode, picture.size) for picture in pictures} == {("RGB", (32, 32))}
    assert rows[0]["codes"] == rows[4]["codes"] and pictures[0].tobytes() == pictures[4].tobytes()
    assert rows[0]["codes"] not in (rows[1]["codes"], rows[6]["codes"])
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path / 'out' / '00000.png'}  cat"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no text to draw"),
        (["cat", "--texts-file", "absent.txt"], "absent.txt"),
        (["cat", "--size", "30"], "multiple of 4"),
        (["cat", "--guidance", "-1"], "guidance"),
        (["cat", "-n", "0"], "n=0"),
        (["cat", "--size", "4096"], "exceed the 1024 positions"),
        (["cat", "-t", "absent"], "absent"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, *arguments, "-o", tmp_path / "out")
    assert not list(tmp_path.glob("out/*.png"))


@pytest.mark.slow
def test_the_command_says_what_it_wrote(tmp_path):
    arguments = ["generate_images.py", *ARGUMENTS, "cat", "-o", str(tmp_path / "out")]
    status, out, err = commands.finish(forked.start(arguments))
    assert (status, err) == (0, "") and out == f"{tmp_path / 'out' / '00000.png'}  cat\n"
