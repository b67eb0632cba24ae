import json
import subprocess
import sys

import pytest
from fake_hub import ROOT

from data import check
from data.check import percentiles

GOOD = {"question": "1+1?", "ground_truth_answer": "2"}
TINY_MODEL = ROOT / "configs" / "tiny_model"


def run(capsys, *arguments):
    status = check.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_a_good_file_is_counted_and_measured(write, capsys):
    path = write("a.json", [{"question": "q" * n, "ground_truth_answer": "a"} for n in range(1, 101)] + [GOOD, GOOD])
    status, out, _ = run(capsys, path, "--data-type", "math")
    assert status == 0
    assert out == [
        f"{path} read as math, prompts as they stand",
        "rows       102",
        "kept       102, 1 of them repeat an earlier one",
        "left out   0",
        "prompt     characters, percentiles: 0% 1  50% 49  90% 90  99% 99  100% 100",
        "answer     characters, percentiles: 0% 1  50% 1  90% 1  99% 1  100% 1",
        "training can use this file",
    ]


def test_rows_left_out_have_reasons_and_places(write, capsys):
    rows = [GOOD, {**GOOD, "question": ""}, {**GOOD, "ground_truth_answer": None}]
    status, out, _ = run(capsys, write("a.jsonl", "\n".join(map(json.dumps, rows))), "--data-type", "math")
    assert status == 0
    assert out[3] == "left out   2: question is empty (1: line 2); ground_truth_answer is null (1: line 3)"


def test_every_wrong_row_is_counted_and_the_first_is_named(write, capsys):
    path = write("a.json", json.dumps([GOOD, {"question": "?"}, GOOD, {"q": "?"}], indent=0))
    status, out, _ = run(capsys, path, "--data-type", "math")
    assert status == 1
    assert out[1:4] == ["rows       4", "kept       2, 1 of them repeat an earlier one", "left out   0"]
    assert out[-2].startswith("wrong      2: ground_truth_answer is missing;") and "question is missing" in out[-2]
    assert out[-1].startswith("first bad line: row 2 (line 6): field 'ground_truth_answer' is missing")


def test_what_was_read_before_a_broken_line_is_still_told(write, capsys):
    path = write("a.jsonl", f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n{{oops\n")
    status, out, _ = run(capsys, path, "--data-type", "math")
    assert status == 1 and out[1] == "rows       2"
    assert out[-1].startswith(f"first bad line: {path}, line 3: malformed JSON")


def test_nothing_left_is_a_failure(write, capsys):
    assert run(capsys, write("a.json", "[]"), "--data-type", "math")[0] == 1
    status, out, _ = run(capsys, write("b.json", [{"question": None}]), "--data-type", "general")
    assert status == 1 and out[-1] == "first bad line: none, but no row is left"


def test_columns_and_sft_files(write, capsys):
    path = write("a.json", [{"problem": "1+1?", "answer": 2}])
    columns = "question=problem,ground_truth_answer=answer"
    assert run(capsys, path, "--data-type", "math", "--columns", columns)[0] == 0
    status, out, _ = run(capsys, write("b.json", [{"prompt": "pp", "response": "rrr"}]), "--data-type", "sft")
    assert status == 0 and "response   characters, percentiles: 0% 3" in out[5]
    with pytest.raises(SystemExit):
        check.main([str(path), "--data-type", "math", "--columns", "question"])
    assert "write WANTED=IN_THE_FILE" in capsys.readouterr().err


def test_tokens_are_those_of_the_prompt_as_it_is_rendered(write, capsys):
    path = write("a.json", [{"question": "1" * n, "ground_truth_answer": "\\boxed{1}"} for n in (3, 9, 5, 8)])
    arguments = [path, "--data-type", "math", "--tokenizer", TINY_MODEL, "--max-prompt-tokens", 7]
    status, out, _ = run(capsys, *arguments, "--template", "plain")
    assert status == 0
    assert out[4:7] == [
        "prompt     tokens, percentiles: 0% 3  50% 8  90% 9  99% 9  100% 9",
        "answer     tokens, percentiles: 0% 3  50% 3  90% 3  99% 3  100% 3",
        "over-long  2 prompts have more than 7 tokens: row 2, row 4",
    ]
    status, out, _ = run(capsys, *arguments)
    assert status == 0 and out[0].endswith("prompts as for sdar")
    assert "over-long  4 prompts have more than 7 tokens: row 1, row 2, row 3, row 4" in out


def test_tasks_that_are_chats_are_read_without_a_family(write, capsys):
    """Their turns, one after the other."""
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "2+2?"}]
    path = write("a.json", [{"prompt": turns, "ground_truth_answer": "4"}])
    status, out, _ = run(capsys, path, "--data-type", "math")
    assert status == 0 and out[-1] == "training can use this file"
    assert out[4] == "prompt     characters, percentiles: 0% 12  50% 12  90% 12  99% 12  100% 12"


def test_options_that_cannot_work_are_refused_before_reading(write, capsys, tmp_path):
    path = write("a.json", [GOOD])
    status, out, err = run(capsys, path, "--data-type", "math", "--family", "dream", "--start-with-think")
    assert (status, out) == (1, []) and "error: start_with_think is true" in err
    status, out, err = run(capsys, path, "--data-type", "math", "--tokenizer", tmp_path / "gone")
    assert (status, out) == (1, []) and "gone: no such folder" in err
    assert "no data set 'nothing'" in run(capsys, "nothing", "--data-type", "math")[2]
    with pytest.raises(SystemExit):
        check.main([str(path), "--data-type", "math", "--max-prompt-tokens", "7"])
    assert "give --tokenizer DIR too" in capsys.readouterr().err


@pytest.mark.parametrize(("folder", "script"), [(ROOT, "data/check.py"), (ROOT / "data", "check.py")])
def test_runs_from_the_root_and_from_its_folder(write, folder, script):
    path = write("a.json", [GOOD])
    done = subprocess.run(
        [sys.executable, script, path, "--data-type", "math"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "training can use this file", done.stderr


def test_percentiles_are_values_of_the_list():
    assert percentiles([5]) == [5, 5, 5, 5, 5]
    assert percentiles([3, 1, 2]) == [1, 2, 3, 3, 3]


def test_pairs_of_preferences_are_measured_on_both_sides(write, capsys):
    good = {"prompt": "hi", "chosen": "yo", "rejected": "bye"}
    turns = {name: [{"role": "user", "content": "hi"}, {"role": "assistant", "content": name}] for name in good}
    del turns["prompt"]
    path = write("a.json", [good, good, good | {"rejected": "yo"}, turns])
    status, out, _ = run(capsys, path, "--data-type", "dpo")
    assert status == 0
    assert out[1:3] == ["rows       4", "kept       3, 1 of them repeat an earlier one"]
    assert out[3] == "left out   1: rejected is the same as 'chosen' (1: row 3 (line 1))"
    assert [line.split()[0] for line in out[4:7]] == ["prompt", "chosen", "rejected"]
    status, out, _ = run(capsys, write("b.json", [{"prompt": "p", "response": "r"}]), "--data-type", "dpo")
    assert status == 1 and "'chosen' is missing" in out[-1]


def responses(*rewards, **more):
    """Responses of a model to one question, each of other tokens."""
    asked = {"task": "1", "prompt_ids": [1], "canvas_step_map": [1], "canvas_logprobs": [-1.0], "num_steps": 1}
    asked |= {"num_response_tokens": 1} | more
    return [asked | {"canvas_ids": [i], "reward": reward} for i, reward in enumerate(rewards)]


def test_a_models_responses_are_counted_in_the_pairs_that_training_makes_of_them(write, capsys):
    compared = responses(1.0, 0.0, entry="compared/x", task="2")
    rows = [*responses(1.0, 0.0, 1.0, 0.0, None), *responses(1.0, task="3"), *compared]
    status, out, _ = run(capsys, write("a.json", [*rows, rows[0]]), "--data-type", "dpo")
    assert status == 0 and out[2] == "kept       9, 1 of them repeat an earlier one"
    assert out[-2] == (
        "pairs      by dataset.pairs_per_task: 1 with 1, 2 with 2, 2 with 4, 2 with null; left out: 1 responses "
        "without a reward, 2 of model.compared_with"
    )
    status, out, _ = run(capsys, write("b.json", responses(1.0, 1.0)), "--data-type", "sft")
    assert status == 0 and out[2] == "kept       2, 0 of them repeat an earlier one"


def test_responses_that_training_refuses_are_refused(write, capsys):
    status, out, _ = run(capsys, write("a.json", responses(0.0, 0.0)), "--data-type", "dpo")
    assert status == 1 and "no task of its 2 responses has both a right one" in out[-1]
    pair = {"prompt": "hi", "chosen": "yo", "rejected": "bye"}
    status, out, _ = run(capsys, write("b.json", [pair, *responses(1.0, 0.0)]), "--data-type", "dpo")
    assert status == 1 and out[-1].endswith("row 2: is a response, and rows before it are pairs: give two files.")
