import os
import time
import warnings
from pathlib import Path

import pytest
from built_rewards import built

from configs.schema import DATA_TYPES, ExecuteConfig, RewardConfig
from reward.registry import DATA_TYPES as GRADED_TYPES

FUNCTIONS = """
import math, os, sys, time
import numpy

calls = []

def length(prompts, completions, **columns):
    return [float(len(c)) for c in completions]

def by_column(completions, wanted):
    return [1.0 if w in c else None for c, w in zip(completions, wanted)]

def sees(prompts, completions, **columns):
    return [float(len(columns)) for _ in completions]

def asks_for_self(completions, self):
    return self

async def later(completions, **columns):
    return [1.0] * len(completions)

class Later:
    async def __call__(self, completions, **columns):
        return [1.0] * len(completions)

called_later = Later()

def numpy_values(completions, **columns):
    return numpy.arange(len(completions), dtype=numpy.float32)

def raises(completions, **columns):
    raise KeyError("the column is not there")

def exits(completions, **columns):
    sys.exit(0)

def hard_exit(completions, **columns):
    os._exit(0)

def hangs(completions, **columns):
    while True:
        pass

def leaves_children(completions, pid_file):
    import subprocess
    child = subprocess.Popen(["sleep", "300"])
    open(pid_file[0], "w").write(str(child.pid))
    time.sleep(300)

def too_short(completions, **columns):
    return [1.0] * (len(completions) - 1)

def wrong_type(completions, **columns):
    return ["a"] * len(completions)

def a_number(completions, **columns):
    return 3

def of_pictures(completions, *, completion_images, **columns):
    return [1.0] * len(completion_images)

def not_finite(completions, **columns):
    return [float("nan"), 10**400, 1][:len(completions)]

def flaky(completions, **columns):
    calls.append(1)
    if len(calls) % 3:
        raise RuntimeError("not yet")
    return [1.0] * len(completions)

def noisy(completions, **columns):
    print("to standard output")
    input_text = sys.stdin.read()
    return [float(len(input_text))] * len(completions)
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "my_rewards.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture
def build(functions):
    made = []

    def make(name, timeout_seconds=20.0):
        made.append(built(function=f"{functions}:{name}", function_timeout_seconds=timeout_seconds))
        return made[-1]

    yield make
    for reward in made:
        reward.close()


def call(reward, n=2, **columns):
    return reward(["p"] * n, [f"answer {i}" for i in range(n)], **columns)


def test_rewards_in_order_and_stats(build):
    reward = build("length")
    assert reward(["p", "p"], ["a", "abc"], wanted=["x", "y"]) == [1.0, 3.0]
    assert reward.stats["reward/none_count"] == 0.0


def test_function_without_columns_gets_what_it_names(build):
    assert call(build("by_column"), wanted=["0", "x"], other=[object(), object()]) == [1.0, None]


def test_function_with_columns_gets_all(build):
    assert call(build("sees"), a=[1, 2], b=[3, 4]) == [2.0, 2.0]


@pytest.mark.slow
def test_array_and_prints_are_accepted(build, capfd):
    assert call(build("numpy_values"), n=3) == [0.0, 1.0, 2.0]
    assert call(build("noisy")) == [0.0, 0.0]
    assert "to standard output" not in capfd.readouterr().out


def test_a_worker_loads_nothing_that_its_function_does_not_ask_for(tmp_path):
    """A run waits for its worker: the parser of mathematical answers alone would take it most of a second."""
    path = tmp_path / "looks.py"
    path.write_text(
        "import sys\nHEAVY = ('torch', 'numpy', 'sympy', 'latex2sympy2_extended', 'omegaconf', 'yaml')\n"
        "def look(completions): return [float(name in sys.modules) for name in HEAVY]"
    )
    with built(function=f"{path}:look") as reward:
        assert call(reward, n=6) == [0.0] * 6


def test_no_completions_is_no_call(build):
    assert build("raises")([], []) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "the column is not there"),
        ("exits", "SystemExit"),
        ("hard_exit", "worker exited with 0"),
        ("too_short", "expected a list of 2 numbers or None, got 1"),
        ("wrong_type", "got str at index 0"),
        ("a_number", "got int"),
    ],
)
def test_failed_call_is_none_with_a_warning(build, name, said):
    reward = build(name)
    with pytest.warns(UserWarning, match=said):
        assert call(reward) == [None, None]
    assert reward.stats["reward/failed_call_count"] == 1.0
    assert reward.stats["reward/none_count"] == 2.0


def test_third_failure_in_a_row_is_an_error(build):
    reward = build("raises")
    for _ in range(2):
        with pytest.warns(UserWarning):
            call(reward)
    with pytest.raises(RuntimeError, match=r"my_rewards.py:raises raised\n(?s:.*)KeyError"):
        call(reward)


def test_a_success_resets_the_count(build):
    reward = build("flaky")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = [call(reward) for _ in range(9)]
    assert seen == ([[None] * 2] * 2 + [[1.0] * 2]) * 3


@pytest.mark.slow
def test_a_hang_is_killed_and_the_next_call_works(build):
    reward = build("hangs", timeout_seconds=0.3)
    started = time.monotonic()
    with pytest.warns(UserWarning, match="longer than reward.function_timeout_seconds = 0.3"):
        assert call(reward) == [None, None]
    assert time.monotonic() - started < 10
    with pytest.warns(UserWarning):
        assert call(reward) == [None, None]


@pytest.mark.slow
def test_a_killed_call_takes_its_children_along(build, tmp_path):
    pid_file = tmp_path / "pid"
    with pytest.warns(UserWarning):
        call(build("leaves_children", timeout_seconds=2.0), n=1, pid_file=[str(pid_file)])
    assert not is_running(int(pid_file.read_text()))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_not_finite_is_none_and_counted(build):
    reward = build("not_finite")
    with pytest.warns(UserWarning, match="2 non-finite"):
        assert call(reward, n=3) == [None, None, 1.0]
    assert reward.stats["reward/nonfinite_count"] == 2.0


def test_nothing_finite_is_a_failed_call(build):
    reward = build("not_finite")
    for _ in range(2):
        with pytest.warns(UserWarning, match="no finite reward"):
            assert call(reward, n=2) == [None, None]
        assert reward.stats["reward/failed_call_count"] == 1.0
    with pytest.raises(RuntimeError, match="(?s)3 calls in a row.*no finite reward"):
        call(reward, n=2)


def test_missing_column_is_named(build):
    with pytest.raises(ValueError, match=r"asks for \['wanted'\], but the columns are \['completions', 'prompts'\]"):
        call(build("by_column"))


def test_a_function_of_drawn_pictures_is_refused_where_responses_are_text(build):
    reward = build("of_pictures")
    reward.check([{"question": "a cat", "completion_images": None}])
    with pytest.raises(ValueError, match="asks for completion_images, the pictures that a model drew.*output=image"):
        reward.check([{"question": "a cat"}])


@pytest.mark.slow
def test_columns_may_have_any_name(build):
    names = {"self": [3.0], "prompts_": [1], "args": [2], "kwargs": [2], "job": [2]}
    assert build("sees")(["p"], ["c"], **names) == [5.0]
    assert build("asks_for_self")(["p"], ["c"], **names) == [3.0]
    with built("option") as reward:
        assert reward(["p"], [r"\boxed{A}"], ground_truth_answer=["A"], self=[1]) == [1.0]


@pytest.mark.parametrize("name", ["later", pytest.param("called_later", marks=pytest.mark.slow)])
def test_an_asynchronous_function_is_awaited(name, build):
    assert build(name)(["p", "p"], ["a", "b"]) == [1.0, 1.0]


@pytest.mark.slow
def test_several_functions_are_a_weighted_sum_with_a_mean_each(functions):
    targets = [f"{functions}:{name}" for name in ("length", "by_column")]
    with built(function=targets, weights={"length": 0.5}) as reward:
        assert reward(["p"] * 3, ["a", "abc", "x"], wanted=["a", "a", "a"]) == [1.5, 2.5, None]
        assert reward.given == {"length": [1.0, 3.0, 1.0], "by_column": [1.0, 1.0, None]}
        assert (
            reward.stats["reward/length_mean"] == pytest.approx(5 / 3) and reward.stats["reward/by_column_mean"] == 1.0
        )
        assert reward.stats["reward/none_count"] == 1.0
    with built("option", function=targets[0], beside_verifier=True, weights={"verifier": 2.0}) as reward:
        assert reward(["p"], [r"\boxed{A}"], ground_truth_answer=["A"]) == [2.0 + 9.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"function": "a.py:f", "weights": {"g": 1.0}}, "reward.weights names g, but the parts of the reward are f"),
        ({"weights": {"f": 1.0}}, "reward.weights names f, but the parts of the reward are the verifier alone"),
        ({"function": ["a.py:f", "b.py:f"]}, "reward.function: f is the name of two parts of the reward"),
        ({"function": ["a.py:verifier"]}, "reward.function: verifier is the name of two parts"),
    ],
)
def test_parts_of_a_reward_that_cannot_be_told_apart_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        built(**settings)


def test_nothing_is_left_after_close(build):
    reward = build("length")
    (worker,) = reward.pool._alive
    pid = worker.process.pid
    assert is_running(pid)
    reward.close()
    assert not os.path.exists(f"/proc/{pid}")


def test_bad_names_are_reported_before_anything_runs(functions, tmp_path):
    with pytest.raises(ValueError, match="must look like path/to/file.py:name"):
        built(function="no_colon.py")
    with pytest.raises(ValueError, match=f"nearest: .*{functions.name}"):
        built(function=f"{functions.parent}/my_reward.py:length")
    with pytest.raises(ValueError, match="no 'lenght'; nearest: length"):
        built(function=f"{functions}:lenght")
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    with pytest.raises(ValueError, match="line 1"):
        built(function=f"{broken}:f")
    crashing = tmp_path / "crashing.py"
    crashing.write_text("import a_module_that_is_not_here\ndef f(completions): return []\n")
    with pytest.raises(ValueError, match=r"cannot be loaded\n(?s:.*)a_module_that_is_not_here"):
        built(function=f"{crashing}:f")
    constant = tmp_path / "constant.py"
    constant.write_text("f = 3\n")
    with pytest.raises(ValueError, match="not callable|not a callable"):
        built(function=f"{constant}:f")


def test_the_settings_of_a_run_reach_its_reward(functions):
    with built() as reward:
        assert reward.verifier.grader.pool.cpu_seconds == RewardConfig().timeout_seconds and reward.verifies
    with built(timeout_seconds=3.0, workers=1) as reward:
        assert (reward.verifier.grader.pool.cpu_seconds, reward.verifier.grader.pool.workers) == (3.0, 1)
    with built(function=f"{functions}:length", function_timeout_seconds=7.0) as reward:
        assert reward.pool.wall_seconds == 7.0
    with built("code", allow_unsafe=True, memory_gib=0.5, all_or_nothing=True, num_chunk=1) as reward:
        assert (reward.grader.memory_bytes, reward.grader.workers, reward.all_or_nothing) == (2**29, 1, True)
    with built("code", allow_unsafe=True) as reward:
        assert reward.grader.memory_bytes == ExecuteConfig().memory_gib * 2**30


def test_every_type_of_data_has_a_reward():
    for data_type in DATA_TYPES:
        built(data_type=data_type, workers=1, allow_unsafe=True).close()
    assert set(DATA_TYPES) == set(GRADED_TYPES)


def test_bad_settings():
    with pytest.raises(ValueError, match="reward.timeout_seconds must be positive, got 0"):
        built(timeout_seconds=0)
    with pytest.raises(ValueError, match="reward.workers must be 0 .* got -1"):
        built(workers=-1)
    with pytest.raises(ValueError, match="no reward for data_type 'poems'"):
        built(data_type="poems")
