"""Data sets with pictures from a repository on GitHub, which a server on 127.0.0.1 stands in for."""

import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from data import check, github
from data.catalog import CATALOG
from data.download_data import main

SOURCE = CATALOG["SEEDBench_IMG_32"]


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def repository(monkeypatch):
    """Files of the repository by path, and the paths that were asked for; `broken` ones come without their end."""
    rows = [
        {"image": f"S/{i}.png", "question": f"Which?\nA.{i}\nB.no", "ground_truth_answer": "A"} for i in range(3)
    ] + [{"image": "elsewhere/4.png", "question": "And?", "ground_truth_answer": "B"}]
    files = {SOURCE.file: json.dumps(rows).encode()} | {f"data/images/S/{i}.png": png("red") for i in range(3)}
    asked, broken = [], set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            place = self.path.split(f"/{SOURCE.repo}/")[1]
            if place.startswith("git/trees"):
                assert place == f"git/trees/{SOURCE.revision}?recursive=1"
                blobs = {path: hashlib.sha1(f"blob {len(x)}\0".encode() + x).hexdigest() for path, x in files.items()}
                tree = [{"path": path, "type": "blob", "sha": sha} for path, sha in blobs.items()]
                body = json.dumps({"tree": [*tree, {"path": "data", "type": "tree", "sha": "0"}]}).encode()
            else:
                commit, path = place.split("/", 1)
                assert commit == SOURCE.revision
                body = files[path][: -1 if path in broken else None]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(github, "API", address)
    monkeypatch.setattr(github, "RAW", address)
    yield files, asked, broken
    server.shutdown()
    server.server_close()


def fetch(folder, capsys):
    code = main(["--dataset", "SEEDBench_IMG_32", "--output", str(folder)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
def test_rows_come_with_their_pictures_and_only_once(repository, tmp_path, capsys):
    _, asked, broken = repository
    broken.add("data/images/S/2.png")
    code, _, said = fetch(tmp_path, capsys)
    assert code == 1 and "does not have GitHub's checksum" in said and not (tmp_path / "SEEDBench_IMG_32.json").exists()
    broken.clear()
    asked.clear()
    code, out, _ = fetch(tmp_path, capsys)
    assert code == 0 and "downloaded 4 rows of commit 10b4fd1c, 3 of their 4 pictures (dataset.image_root=" in out
    assert sum("images/S" in path for path in asked) == 1  # the two that were whole are kept
    assert sorted(path.name for path in (tmp_path / "images" / "S").iterdir()) == ["0.png", "1.png", "2.png"]
    asked.clear()
    assert "is there: 4 rows" in fetch(tmp_path, capsys)[1] and not asked
    assert check.main([str(tmp_path / "SEEDBench_IMG_32.json"), "--data-type", "mmu"]) == 0
    assert "pictures   4, unusable 1" in capsys.readouterr().out


def test_a_repository_that_does_not_answer_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(github, "API", "http://127.0.0.1:9")
    code, out, said = fetch(tmp_path, capsys)
    assert code == 1 and not out and said.startswith("SEEDBench_IMG_32: failed: http://127.0.0.1:9/repos/Gen-Verse")
