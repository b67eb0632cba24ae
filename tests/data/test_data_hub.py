import pytest
from fake_hub import COMMIT, ROOT

from data import load_tasks
from data.hub import fetch_dataset, matches

LINES = b'{"problem": "1+1", "solution": "2"}\n{"problem": "2+2", "solution": "4"}\n'
COLUMNS = {"question": "problem", "ground_truth_answer": "solution"}
RESOLVE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from data import resolve_dataset
try:
    print(resolve_dataset(sys.argv[1], folder=sys.argv[2]))
except ValueError as error:
    sys.exit(f"error: {{error}}")
"""


@pytest.mark.slow
def test_a_hub_id_is_fetched_once_and_read_like_any_file(hub, tmp_path):
    hub.put("acme/sums", "train.jsonl", LINES)
    done = hub.run(tmp_path, "-c", RESOLVE, "hub:acme/sums", tmp_path)
    path = tmp_path / "hub" / "acme--sums--train.parquet"
    assert done.returncode == 0 and done.stdout.strip() == str(path), done.stderr
    assert [task.answer for task in load_tasks(path, data_type="math", columns=COLUMNS)] == ["2", "4"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert fetch_dataset("hub:acme/sums", tmp_path) == path


@pytest.mark.slow
def test_split_and_revision_of_a_hub_id(hub, tmp_path):
    hub.put("acme/sums", "test.jsonl", LINES)
    done = hub.run(tmp_path, "-c", RESOLVE, f"hub:acme/sums:test@{COMMIT}", tmp_path)
    assert done.stdout.strip() == str(tmp_path / "hub" / f"acme--sums--test--{COMMIT}.parquet"), done.stderr
    missing = hub.run(tmp_path, "-c", RESOLVE, "hub:acme/sums:train", tmp_path)
    assert (
        missing.returncode == 1 and "hub:acme/sums:train: ValueError: " in missing.stderr and "test" in missing.stderr
    )
    gone = hub.run(tmp_path, "-c", RESOLVE, "hub:acme/nothing", tmp_path)
    assert gone.returncode == 1 and "hub:acme/nothing: DatasetNotFoundError" in gone.stderr
    assert "Traceback" not in missing.stderr + gone.stderr


@pytest.mark.parametrize(
    "name", ["hub:", "hub:sums", "hub:a/b c", "hub:acme/sums@", "hub:../../etc:passwd/", "hub:a/b:"]
)
def test_hub_ids_of_another_form_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"is written hub:OWNER/NAME\[/CONFIG\]\[:SPLIT\]\[@REVISION\]"):
        fetch_dataset(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_checksums_of_both_kinds(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    assert matches(path, "ce013625030ba8dba906f756967f9e9ca394464a")
    assert matches(path, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")
    assert not matches(path, "f" * 40) and not matches(path, "0" * 64)
    with pytest.warns(UserWarning, match="of no known kind, only the size was checked"):
        assert matches(path, "W/weak-etag")
