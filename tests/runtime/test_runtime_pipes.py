"""Commands whose output nobody reads any more: quiet, and nothing is lost."""

import os
import subprocess
import sys

import commands
import forked
import pytest
from end_to_end import RL, read_jsonl

from runtime.pipes import quiet_pipes


def run_unread(arguments, stream="stdout", timeout=120):
    """(status, the other stream's text) of a command whose `stream` is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    named = {stream: writer, other: subprocess.PIPE, "cwd": commands.ROOT, "text": True, "timeout": timeout}
    try:
        done = subprocess.run([sys.executable, *map(str, arguments)], **named)
    finally:
        os.close(writer)
    return done.returncode, getattr(done, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["rl.py", "--help"],
        ["data/check.py", "--help"],
        ["data/download_data.py", "--list"],
        ["sample/get_trace_viewer.py", "--help"],
        *(pytest.param([script, "--help"], marks=pytest.mark.slow) for script in ("eval.py", "train/sft.py")),
        *(pytest.param([f"{name}.py", "--help"], marks=pytest.mark.slow) for name in ("models/merge", "multinode_rl")),
        pytest.param(["data/preprocess_sft.py", "--help"], marks=pytest.mark.slow),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_whose_output_is_not_read_ends_quietly(arguments):
    assert run_unread(arguments) == (0, "")


@pytest.mark.parametrize(
    "script",
    [
        "rl.py",
        "train/sft.py",
        "models/merge.py",
        "generate_images.py",
        pytest.param("sample/get_trace_viewer.py", marks=pytest.mark.slow),
    ],
)
def test_help_does_not_wait_for_torch(script):
    status, _, err = commands.finish(commands.start(["-X", "importtime", script, "--help"]))
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines()}
    assert status == 0 and "runtime.pipes" in imported and "torch" not in imported


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_more_output_than_a_pipe_holds_is_dropped_once_nobody_reads(stream):
    code = f"""if True:
        import sys
        from runtime.pipes import on_broken_pipe, quiet_pipes
        quiet_pipes()
        found = []
        on_broken_pipe(lambda: found.append(1))
        for i in range(3000): print("x" * 100, file=sys.{stream})
        sys.{stream}.flush()
        on_broken_pipe(lambda: found.append(2))
        assert found == [1, 2], found
    """
    assert run_unread(["-c", code], stream) == (0, "")


def test_a_stream_that_is_read_and_a_tests_own_stay_as_they_are(capsys):
    before = sys.stdout
    quiet_pipes()
    assert sys.stdout is before
    code = (
        "import sys; from runtime.pipes import quiet_pipes; quiet_pipes(); print(sys.stdout.isatty(), 'é', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False é\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_run_whose_reader_leaves_saves_and_ends_quietly(shop, processes):
    arguments = shop.arguments(
        RL, "experiment.total_step=40", "experiment.save_every=40", f"experiment.processes={processes}"
    )
    process = forked.start(["rl.py", *arguments])
    while not process.stdout.readline().startswith("step  2/40"):
        assert process.poll() is None, process.stderr.read()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", 141)
    (saved,) = (shop.runs / "rl" / "ckpt").glob("step-*")
    steps = [row["step"] for row in read_jsonl(shop.runs / "rl" / "metrics.jsonl") if "loss" in row]
    assert 2 <= steps[-1] == int(saved.name.removeprefix("step-")) < 40
