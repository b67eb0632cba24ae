"""What the ssh launcher sends to the other node's shell."""

import json
import os
import subprocess
import sys

import pytest

from runtime.ssh import PASSED, script

PRINTS = [
    sys.executable,
    "-c",
    "import json, os, sys; print(json.dumps([dict(os.environ), os.getcwd(), sys.argv[1:]]))",
]


def run(environment, folder, *arguments):
    text = script(environment, str(folder), [*PRINTS, *arguments])
    done = subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_values_folder_and_words_arrive_as_they_are(tmp_path):
    folder = tmp_path / "it's a; folder $HOME"
    folder.mkdir()
    values = {"HF_A": 'it\'s $HOME `id` \\ "x"', "NCCL_B": "two\nlines", "MLP_C": "", "CUDA_D": "ünï"}
    found, where, arguments = run(values, folder, "a.b=c d", "x='y'", "--z")
    assert values.items() <= found.items() and where == str(folder) and arguments == ["a.b=c d", "x='y'", "--z"]


@pytest.mark.parametrize(
    "name", ["HF_FOO-BAR", "HF_A;touch ran;B", "HF_$(touch ran)", "NCCL_`touch ran`", "my-host.x_proxy"]
)
def test_a_name_that_no_shell_can_export_arrives_and_runs_nothing(tmp_path, name):
    assert PASSED.fullmatch(name)
    found, *_ = run({name: "1; touch ran", "HF_B": "2"}, tmp_path)
    assert (found[name], found["HF_B"]) == ("1; touch ran", "2") and list(tmp_path.iterdir()) == []


def test_values_are_not_among_the_words_of_a_process():
    """Others on the machine can list those."""
    *exports, last = script({"HF_TOKEN": "secret", "B": "secret"}, "/", ["python"]).splitlines()
    assert last == "cd / && exec python < /dev/null" and len(exports) == 2
