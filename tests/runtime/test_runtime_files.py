import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest

from runtime import files
from runtime.files import (
    append_jsonl,
    atomic_folder,
    atomic_write_text,
    file_digest,
    read_jsonl,
    remove_leftovers,
    truncate_jsonl,
)

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_text_is_replaced_whole(tmp_path):
    path = tmp_path / "config.yaml"
    atomic_write_text(path, "a: 1\n")
    atomic_write_text(path, "a: ü\n")
    assert path.read_text(encoding="utf-8") == "a: ü\n"
    assert names(tmp_path) == ["config.yaml"]


def test_full_disk_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    atomic_write_text(path, "old")
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["config.yaml"]


def test_folder_appears_whole_and_replaces(tmp_path):
    path = tmp_path / "ckpt" / "step-1"
    for content in ("first", "second"):
        with atomic_folder(path) as folder:
            (folder / "model").mkdir()
            (folder / "model" / "weights").write_text(content)
            assert not path.exists() or (path / "model" / "weights").read_text() == "first"
        assert (path / "model" / "weights").read_text() == content
    assert names(tmp_path / "ckpt") == ["step-1"]


def test_full_disk_inside_a_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "step-1"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(OSError, match="No space left"), atomic_folder(path) as folder:
        (folder / "weights").write_text("new")
        full_disk()
    assert (path / "weights").read_text() == "old"
    assert names(tmp_path) == ["step-1"]


def test_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "step-1"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("old")
    rename = Path.rename

    def refuse_the_new_one(self, target):
        if Path(target) == path and (self / "new").exists():
            raise PermissionError(13, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(PermissionError), atomic_folder(path) as folder:
        (folder / "new").write_text("new")
    assert (path / "weights").read_text() == "old"
    assert names(tmp_path) == ["step-1"]


def test_kill_while_a_folder_is_written(tmp_path):
    path = tmp_path / "step-2"
    code = (
        "import sys, time; from pathlib import Path; from runtime.files import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a').write_text('a'); print('writing', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not path.exists()
    (tmp_path / ".mine").write_text("not a leftover")
    assert [leftover.name.startswith(".step-2.tmp-") for leftover in remove_leftovers(tmp_path)] == [True]
    assert names(tmp_path) == [".mine"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "weights").write_text("mine")
    for target in ("elsewhere", "nowhere"):
        path = tmp_path / f"step-{target}"
        path.symlink_to(target)
        with atomic_folder(path) as folder:
            (folder / "weights").write_text("new")
        assert not path.is_symlink() and (path / "weights").read_text() == "new"
    assert (tmp_path / "elsewhere" / "weights").read_text() == "mine"


def test_a_digest_tells_every_byte_and_the_length(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE_BYTES", 64)
    content = bytes(range(256))
    path = tmp_path / "file"
    found = {}
    for place in (None, 0, 63, 64, 255):
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        path.write_bytes(changed)
        found[place] = file_digest(path)
    path.write_bytes(content[:192] + content[128:192])
    found["other piece"] = file_digest(path)
    path.write_bytes(content + b"\0")
    found["longer"] = file_digest(path)
    assert len(set(found.values())) == len(found)
    assert file_digest(path, 256) == found[None]
    path.write_bytes(b"")
    assert file_digest(path) not in found.values()


@pytest.mark.parametrize(
    "write", [lambda path: atomic_write_text(path, "x" * 4000), lambda path: append_jsonl(path, [{"x": "y" * 4000}])]
)
def test_a_full_disk_names_the_file(tmp_path, write):
    """A limit of the size of files stands for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=f"{tmp_path}/log"):
            write(tmp_path / "log")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_jsonl_round_trip_and_scalars(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, [{"step": 1, "loss": numpy.float32(0.5)}, {"step": 2, "text": "zwölf\n\ud800"}])
    append_jsonl(path, [{"step": 3, "loss": 0.1}])
    assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3]
    assert next(iter(read_jsonl(path))) == {"step": 1, "loss": 0.5}
    with pytest.raises(TypeError, match="Path"):
        append_jsonl(path, [{"path": tmp_path}])
    assert len(path.read_text().splitlines()) == 3


def test_an_incomplete_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, [{"step": step} for step in (1, 2)])
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    append_jsonl(path, [{"step": 4}])
    with pytest.warns(UserWarning, match=r"metrics.jsonl: left out 1 line"):
        assert [row["step"] for row in read_jsonl(path)] == [1, 2, 4]
    with pytest.warns(UserWarning, match=r"metrics.jsonl: 1 damaged line"):
        assert truncate_jsonl(path, lambda row: row["step"] <= 3) == 2
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_truncate_touches_nothing_that_it_keeps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert truncate_jsonl(path, lambda row: True) == 0
    assert not path.exists()
    append_jsonl(path, [{"step": 1}])
    before = path.stat().st_ino
    assert truncate_jsonl(path, lambda row: True) == 0
    assert path.stat().st_ino == before
    assert names(tmp_path) == ["metrics.jsonl"]


def test_whole_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}')
    assert truncate_jsonl(path, lambda row: row["step"] != 2) == 1
    append_jsonl(path, [{"step": 4}])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3, 4]


@pytest.mark.slow
def test_appends_survive_kills(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = (
        "import sys; from pathlib import Path; from runtime.files import append_jsonl\n"
        "for n in range(10**6): append_jsonl(Path(sys.argv[1]), [{'n': n, 'text': 'x' * 5000}])\n"
    )
    for delay_seconds in (0.5, 0.7, 0.9):
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, env={**os.environ})
        time.sleep(delay_seconds)
        child.kill()
        child.wait()
    rows = list(read_jsonl(path))
    assert sum(row["n"] == 0 for row in rows) == 3
    assert all(len(row["text"]) == 5000 for row in rows)
