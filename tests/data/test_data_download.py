import hashlib
import io
import json
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import COMMIT, ROOT

from data import load_examples, load_tasks
from data.catalog import CATALOG

SCRIPT = ROOT / "data" / "download_data.py"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"
ROWS = [{"question": f"What is {i}?", "ground_truth_answer": str(i)} for i in range(50)]
CODE_ROWS = [{"question": "Add.", "test_method": "function", "test_list": ["assert add(1, 2) == 3"]}]
SFT_ROWS = [{"prompt": "What is 1+1?", "response": "2"}]
GPQA_CSV = (
    "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"
    'r1,"Which, of\nthese?",right,wrong one,wrong two,wrong three\n'
    "r2,And now?, right ,no,nay,never\n"
)


def put(hub, name="MATH500", content=ROWS, **options):
    hub.put(CATALOG[name].repo, CATALOG[name].file, content, **options)


def fetch(hub, tmp_path, *arguments, **environment):
    return hub.run(tmp_path, SCRIPT, *arguments, "--output", tmp_path / "out", **environment)


def parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.mark.slow
def test_a_file_arrives_whole_and_once(hub, tmp_path):
    put(hub)
    put(hub, "AIME2024", lfs=True)
    done = fetch(hub, tmp_path, "--dataset", "MATH500", "AIME2024")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "MATH500: downloaded 50 rows of commit 01234567",
        "AIME2024: downloaded 50 rows of commit 01234567",
    ]
    assert [task.columns for task in load_tasks(tmp_path / "out" / "MATH500.json", data_type="math")] == ROWS
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".download", "AIME2024.json", "MATH500.json"]
    assert not list((tmp_path / "out" / ".download").glob("*part*"))
    to_the_hub = [headers.get("authorization") for path, headers in hub.requests() if path.startswith("/datasets")]
    elsewhere = [headers.get("authorization") for path, headers in hub.requests() if path.startswith("/cdn")]
    assert to_the_hub == ["Bearer hf_secret"] * 2 and elsewhere == [None]
    hub.log.clear()
    again = fetch(hub, tmp_path, "--dataset", "MATH500")
    assert again.stdout == "MATH500: is there: 50 rows of commit 01234567\n" and not hub.log


@pytest.mark.slow
def test_runs_from_the_data_folder_by_its_bare_name(hub, tmp_path):
    put(hub)
    done = hub.run(
        tmp_path, "download_data.py", "--dataset", "MATH500", "--output", tmp_path / "out", cwd=ROOT / "data"
    )
    assert done.returncode == 0 and (tmp_path / "out" / "MATH500.json").is_file(), done.stderr


@pytest.mark.slow
def test_all_fetches_every_name_and_list_says_so(hub, tmp_path):
    """Those on GitHub are out of reach here and are named; test_data_github.py has them."""
    elsewhere = [name for name, source in CATALOG.items() if source.pictures]
    for name, source in CATALOG.items():
        rows = {"sft": SFT_ROWS, "code": CODE_ROWS}.get(source.data_type, ROWS)
        if name == "AMC23":
            rows = parquet([{"id": 0, "question": "q", "answer": "27.0"}, {"id": 1, "question": "r", "answer": "5"}])
        put(hub, name, GPQA_CSV.encode() if name == "GPQA" else rows, commit=source.revision or COMMIT)
    done = fetch(hub, tmp_path, "--all", https_proxy="http://127.0.0.1:9")
    assert done.returncode == 1 and f"{len(elsewhere)} could not be downloaded: {', '.join(elsewhere)}" in done.stderr
    out = tmp_path / "out"
    assert [task.answer for task in load_tasks(out / "AMC23.json", data_type="math")] == ["27", "5"]
    assert load_examples(out / "demon_openr1math.json")[0].response == "2"
    for task in load_tasks(out / "GPQA.json", data_type="option"):
        options = dict(line.split(". ") for line in task.question.splitlines()[-4:])
        assert sorted(options) == list("ABCD") and options[task.answer] == "right"
    listed = fetch(hub, tmp_path, "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(CATALOG)
    assert [line.split()[0] for line in listed if "here, " not in line] == elsewhere


@pytest.mark.slow
def test_unknown_names_and_mixed_options_are_refused(hub, tmp_path):
    wrong = fetch(hub, tmp_path, "--dataset", "MATH50")
    assert wrong.returncode == 2 and "unknown data set 'MATH50': did you mean MATH500?" in wrong.stderr
    mixed = fetch(hub, tmp_path, "--all", "--revision", "main")
    assert mixed.returncode == 2 and "--revision belongs to one data set" in mixed.stderr
    assert fetch(hub, tmp_path).returncode == 2
    assert not hub.log


@pytest.mark.slow
def test_what_the_hub_refuses_is_reported_and_the_rest_still_comes(hub, tmp_path):
    hub.gated.add(CATALOG["GPQA"].repo)
    hub.put(CATALOG["GSM8K"].repo, "other.json", ROWS)
    put(hub, "MBPP", b'[{"question": "cut o')
    put(hub)
    done = fetch(hub, tmp_path, "--dataset", "GPQA", "GSM8K", "HumanEval", "MBPP", "MATH500")
    assert done.returncode == 1
    gated, no_file, no_repo, malformed, total = done.stderr.strip().splitlines()
    assert "GPQA: failed" in gated and "gated" in gated and hub.endpoint in gated
    assert "GSM8K: failed" in no_file and "EntryNotFoundError" in no_file and "test/GSM8K.json" in no_file
    assert "HumanEval: failed" in no_repo and "RepositoryNotFoundError" in no_repo
    assert "MBPP: failed" in malformed and "row 1 (line 1)" in malformed
    assert total == "4 could not be downloaded: GPQA, GSM8K, HumanEval, MBPP"
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["MATH500.json"]


@pytest.mark.slow
def test_a_wrong_checksum_leaves_the_old_file(hub, tmp_path):
    put(hub)
    assert fetch(hub, tmp_path, "--dataset", "MATH500").returncode == 0
    before = (tmp_path / "out" / "MATH500.json").read_bytes()
    hub.corrupt.add(CATALOG["MATH500"].repo)
    put(hub, content=ROWS[:-1] + [{"question": "x", "ground_truth_answer": "y"}], commit=OTHER_COMMIT)
    done = fetch(hub, tmp_path, "--dataset", "MATH500", "--revision", "main")
    assert done.returncode == 1 and "does not have the hub's checksum" in done.stderr
    assert (tmp_path / "out" / "MATH500.json").read_bytes() == before
    assert not list((tmp_path / "out" / ".download").glob("*partial"))


@pytest.mark.slow
def test_a_killed_download_goes_on_where_it_stopped(hub, tmp_path):
    large = json.dumps([*ROWS, {"question": "q" * (25 << 20), "ground_truth_answer": "1"}]).encode()
    put(hub, content=large)
    hub.stall_after_bytes = 22 << 20
    command = [sys.executable, SCRIPT, "--dataset", "MATH500", "--output", tmp_path / "out"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=hub.environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while sum(path.stat().st_size for path in tmp_path.glob("out/.download/*.partial")) < 20 << 20:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    hub.go_on.set()
    assert not (tmp_path / "out" / "MATH500.json").exists()
    hub.log.clear()
    done = fetch(hub, tmp_path, "--dataset", "MATH500")
    assert done.returncode == 0, done.stderr
    assert [headers.get("range") for _, headers in hub.requests()] == [f"bytes={20 << 20}-"]
    assert (tmp_path / "out" / "MATH500.json").read_bytes() == large


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra_bytes", [0, pytest.param(-5, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.slow)]
)
def test_a_spoilt_part_is_fetched_anew(hub, tmp_path, extra_bytes):
    put(hub)
    content = hub.files[CATALOG["MATH500"].repo, COMMIT, CATALOG["MATH500"].file]
    etag = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    part = tmp_path / "out" / ".download" / f"MATH500.json.{etag}.partial"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * (len(content) + extra_bytes))
    done = fetch(hub, tmp_path, "--dataset", "MATH500")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "MATH500.json").read_bytes() == content


@pytest.mark.slow
def test_a_name_keeps_meaning_the_commit_that_was_fetched(hub, tmp_path):
    put(hub)
    target = tmp_path / "out" / "MATH500.json"
    assert fetch(hub, tmp_path, "--dataset", "MATH500").returncode == 0
    put(hub, content=ROWS[:10], commit=OTHER_COMMIT)
    target.unlink()
    assert "downloaded 50 rows of commit 01234567" in fetch(hub, tmp_path, "--dataset", "MATH500").stdout
    assert (
        "downloaded 10 rows of commit fedcba98"
        in fetch(hub, tmp_path, "--dataset", "MATH500", "--revision", "main").stdout
    )
    assert "is there: 10 rows" in fetch(hub, tmp_path, "--dataset", "MATH500").stdout
    put(hub, content=ROWS[:3], commit=OTHER_COMMIT)
    rewritten = fetch(hub, tmp_path, "--dataset", "MATH500", "--force")
    assert rewritten.returncode == 1 and "gave another file than before" in rewritten.stderr
    assert len(load_tasks(target, data_type="math")) == 10


@pytest.mark.slow
def test_a_file_of_the_users_is_never_overwritten_unasked(hub, tmp_path):
    put(hub)
    target = tmp_path / "out" / "MATH500.json"
    target.parent.mkdir()
    target.write_text("[]")
    kept = fetch(hub, tmp_path, "--dataset", "MATH500")
    assert kept.returncode == 0 and "was not downloaded by this command and is kept" in kept.stderr
    assert target.read_text() == "[]" and not hub.log
    assert "downloaded 50 rows" in fetch(hub, tmp_path, "--dataset", "MATH500", "--force").stdout
    target.write_text("[{}]")
    assert "was changed after its download and is kept" in fetch(hub, tmp_path, "--dataset", "MATH500").stderr
    assert target.read_text() == "[{}]"


@pytest.mark.slow
def test_offline_takes_the_cache_or_says_what_is_missing(hub, tmp_path):
    put(hub)
    source = CATALOG["MATH500"]
    code = f"import huggingface_hub as h; h.hf_hub_download({source.repo!r}, {source.file!r}, repo_type='dataset')"
    assert hub.run(tmp_path, "-c", code).returncode == 0
    hub.log.clear()
    done = fetch(hub, tmp_path, "--dataset", "MATH500", "GSM8K", HF_HUB_OFFLINE="1")
    assert done.stdout == "MATH500: downloaded 50 rows of commit 01234567\n" and done.returncode == 1
    assert "GSM8K: failed" in done.stderr and "offline (HF_HUB_OFFLINE is set)" in done.stderr
    assert not hub.log


@pytest.mark.slow
def test_rows_that_training_would_refuse_are_remarked(hub, tmp_path):
    put(hub, content=[*ROWS, {"question": "?", "ground_truth_answer": None}, {"question": "?", "answer": "1"}])
    done = fetch(hub, tmp_path, "--dataset", "MATH500")
    assert done.returncode == 0
    assert (
        "downloaded 52 rows" in done.stdout
        and "2 cannot be used: ground_truth_answer is null (1: row 51" in done.stdout
    )


@pytest.mark.slow
def test_no_server_is_a_line_not_a_traceback(hub, tmp_path):
    done = fetch(hub, tmp_path, "--dataset", "MATH500", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and "MATH500: failed: http://127.0.0.1:9/datasets/Gen-Verse/MATH500" in done.stderr
    assert "Traceback" not in done.stderr
