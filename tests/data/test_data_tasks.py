import json
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import load_examples, load_tasks, resolve_dataset
from data.tasks import read_tasks

REAL = Path(__file__).resolve().parents[3] / "shared" / "real" / "data"
FUNCTION = {"question": "Add.", "test_method": "function", "test_list": ["assert add(1, 2) == 3"], "test_time_limit": 2}
STDIO = {"question": "Echo.", "test_method": "stdio", "test_input": ["1\n", "2\n"], "test_output": ["1", "2"]}
FIELDS = ["question", "ground_truth_answer", "test_method", "test_list", "test_input", "test_output", "prefix", "id"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.sampled_from(["function", "stdio", "", "x", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
)
SURROGATE = json.loads('"\\ud83d"')


def test_tasks_have_ids_answers_and_their_whole_rows(write):
    rows = [
        {"question": "1+1?", "ground_truth_answer": "2", "level": 5},
        {"question": "1/2?", "ground_truth_answer": 0.5, "id": "half"},
        {"question": "2+2?", "ground_truth_answer": 4, "task_id": "T/1", "id": "x"},
    ]
    tasks = load_tasks(write("a.json", rows), data_type="math")
    assert [(task.id, task.answer) for task in tasks] == [("1", "2"), ("half", "0.5"), ("T/1", "4")]
    assert tasks[0].columns == rows[0] and tasks[1].columns["ground_truth_answer"] == "0.5"


def test_ids_differ_even_if_the_file_repeats_them(write):
    rows = [{"question": "?", "id": name} for name in ("a", "a", "3", "a", 0, None, ["a"])]
    ids = [task.id for task in load_tasks(write("a.json", rows), data_type="general")]
    assert ids == ["a", "a#2", "3", "a#4", "0", "6", "7"]


def test_columns_of_other_names_are_mapped(write):
    path = write("a.jsonl", '{"problem": "1+1?", "solution": 2}\n')
    (task,) = load_tasks(path, data_type="math", columns={"question": "problem", "ground_truth_answer": "solution"})
    assert (task.question, task.answer) == ("1+1?", "2")
    own = {"problem": "1+1?", "solution": 2}
    assert task.columns == own | {"question": "1+1?", "ground_truth_answer": "2"}


def test_one_mapping_serves_a_file_that_has_the_wanted_names(write):
    """dataset.columns holds for the training file and for the evaluation's, which may need no mapping."""
    columns = {"question": "problem", "ground_truth_answer": "answer"}
    (task,) = load_tasks(
        write("a.json", [{"question": "1+1?", "ground_truth_answer": "2"}]), data_type="math", columns=columns
    )
    assert (task.question, task.answer) == ("1+1?", "2")
    (task,) = load_tasks(write("b.json", [{"question": "1+1?", "answer": 2}]), data_type="math", columns=columns)
    assert (task.question, task.answer) == ("1+1?", "2") and task.columns["answer"] == 2


def test_general_tasks_need_no_answer(write):
    (task,) = load_tasks(write("a.json", [{"question": "Write a poem."}]), data_type="general")
    assert task.answer is None


def test_code_tasks_of_both_kinds(write):
    tasks = load_tasks(write("a.json", [FUNCTION, {**FUNCTION, "prefix": None}, STDIO]), data_type="code")
    assert [task.columns["test_method"] for task in tasks] == ["function", "function", "stdio"]
    assert all(task.answer is None for task in tasks)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"question": None}, "question is null"),
        ({"question": " \n"}, "question is empty"),
        ({"ground_truth_answer": None}, "ground_truth_answer is null"),
        ({"ground_truth_answer": ""}, "ground_truth_answer is empty"),
        ({"question": f"half {SURROGATE}"}, "question holds a lone surrogate"),
        ({"notes": [{"deep": [SURROGATE]}]}, "notes holds a lone surrogate"),
    ],
)
def test_blank_rows_are_left_out_counted_and_placed(write, row, what):
    good = {"question": "1+1?", "ground_truth_answer": "2"}
    path = write("a.json", json.dumps([good, {**good, **row}, good, {**good, **row}], indent=1))
    with pytest.warns(UserWarning) as caught:
        tasks = load_tasks(path, data_type="math")
    assert len(tasks) == 2 and [task.id for task in tasks] == ["1", "3"]
    (warning,) = caught
    assert f"{path}: left out 2 of 4 rows: {what}" in str(warning.message)
    assert "(2: row 2 (line 6), row 4" in str(warning.message)
    assert [fault.place for fault in read_tasks(path, data_type="math")[1]][0] == "row 2 (line 6)"


def test_emoji_nul_and_braces_are_text_like_any_other(write):
    question = "\U0001f600 \x00 {{problem}} {% if %} \\boxed{}"
    (task,) = load_tasks(write("a.json", [{"question": question}]), data_type="general")
    assert task.question == question


@pytest.mark.parametrize(
    ("row", "data_type", "message"),
    [
        ({"questions": "?"}, "general", "'question' is missing; the row has questions;.*{question: questions}"),
        ({}, "general", "field 'question' is missing; the row has none"),
        ({"question": 3}, "general", "field 'question' is int 3, expected text"),
        ({"question": ["?"]}, "general", r"field 'question' is list \['\?'\], expected text"),
        ({"question": "?"}, "math", "field 'ground_truth_answer' is missing"),
        ({"question": "?"}, "option", "field 'ground_truth_answer' is missing"),
        ({"question": "?", "ground_truth_answer": True}, "math", "field 'ground_truth_answer' is bool True"),
        ({"question": "?", "ground_truth_answer": ["1"]}, "math", r"field 'ground_truth_answer' is list"),
        ({"question": "?"}, "code", "field 'test_method' is missing"),
        ({**FUNCTION, "test_method": "unit"}, "code", "'test_method' is str 'unit', expected 'function' or 'stdio'"),
        ({"question": "?", "test_method": "function"}, "code", "field 'test_list' is missing"),
        ({**FUNCTION, "test_list": "assert f()"}, "code", "'test_list' is str 'assert f.*expected a list of texts"),
        ({**FUNCTION, "test_list": [1]}, "code", r"field 'test_list' is list \[1\]"),
        ({**FUNCTION, "prefix": 3}, "code", "field 'prefix' is int 3"),
        ({**FUNCTION, "test_time_limit": 0}, "code", "field 'test_time_limit' is int 0, expected seconds above 0"),
        ({**FUNCTION, "test_time_limit": "2"}, "code", "field 'test_time_limit' is str '2'"),
        ({**FUNCTION, "test_time_limit": True}, "code", "field 'test_time_limit' is bool True"),
        ({"question": "?", "test_method": "stdio", "test_input": ["1"]}, "code", "field 'test_output' is missing"),
    ],
)  # fmt: skip
def test_another_schema_stops_with_line_and_field(write, row, data_type, message):
    path = write("a.json", [row])
    with pytest.raises(ValueError, match=message) as raised:
        load_tasks(path, data_type=data_type)
    assert str(raised.value).startswith(f"{path}, row 1 (line 1): field")


def test_code_rows_without_tests_are_left_out(write):
    path = write("a.json", [FUNCTION, {**FUNCTION, "test_list": []}, {**STDIO, "test_output": ["1"]}, STDIO])
    with pytest.warns(UserWarning, match="test_list is an empty list.*test_output has 1 entries for 2 of test_input"):
        assert len(load_tasks(path, data_type="code")) == 2


def test_a_mapping_to_a_column_that_is_not_there_names_it(write):
    path = write("a.json", [{"query": "?"}])
    message = r"field 'question' is missing \(read from column 'querry'\); the row has query; .*\{question: query\}"
    with pytest.raises(ValueError, match=message):
        load_tasks(path, data_type="general", columns={"question": "querry"})
    other = write("b.json", [{"name": "not this one", "level": 1}])
    with pytest.raises(ValueError, match=r"\(read from column 'problem'\); the row has name, level;"):
        load_tasks(other, data_type="general", columns={"question": "problem"})


def test_no_row_left_is_an_error(write):
    with pytest.raises(ValueError, match="no usable row$"):
        load_tasks(write("a.json", "[]"), data_type="math")
    rows = [{"question": "?", "ground_truth_answer": None}]
    with pytest.raises(ValueError, match="no usable row, all 1 were left out: ground_truth_answer is null"):
        load_tasks(write("b.json", rows), data_type="math")


def test_an_unknown_data_type_is_refused_before_reading(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data_type 'maths'.*did you mean math\?"):
        load_tasks(tmp_path / "not there.json", data_type="maths")


def test_examples_and_their_step_maps(write):
    rows = [{"prompt": "p", "response": "r", "step_map": [1, 1, 2]}, {"prompt": "p", "response": "r"}]
    assert [example.step_map for example in load_examples(write("a.json", rows))] == [[1, 1, 2], None]
    for bad in ("1,2", [1, -1], [1, True], [1.0], {"1": 1}):
        with pytest.raises(ValueError, match="field 'step_map' must be a list of whole numbers"):
            load_examples(write("b.json", [{"prompt": "p", "response": "r", "step_map": bad}]))
    with pytest.warns(UserWarning, match="response is empty"):
        assert len(load_examples(write("c.json", [*rows, {"prompt": "p", "response": ""}]))) == 2
    with pytest.raises(ValueError, match="field 'response' is missing"):
        load_examples(write("d.json", [{"prompt": "p", "answer": "r"}]))


def test_names_and_paths_resolve(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("own.jsonl", "table.parquet", "MATH500.json"):
        (folder / name).touch()
    assert resolve_dataset("own", folder=folder) == folder / "own.jsonl"
    assert resolve_dataset("table", folder=str(folder)) == folder / "table.parquet"
    assert resolve_dataset("MATH500.json", folder=folder) == folder / "MATH500.json"
    assert resolve_dataset(str(folder / "own.jsonl"), folder=tmp_path) == folder / "own.jsonl"
    monkeypatch.chdir(folder)
    assert resolve_dataset("own.jsonl", folder=tmp_path / "nowhere") == Path("own.jsonl")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MATH500", "looked for .*MATH500.json, .*MATH500.jsonl, .*; .* has own.json"),
        ("MATH500", "To get it: python data/download_data.py --dataset MATH500$"),
        ("MATH50", r"no data set 'MATH50'.*Did you mean MATH500\?"),
        ("onw", r"Did you mean own\?"),
        ("tiny_trian", r"Did you mean tiny_train\?"),
        ("own.jsonl", r"looked for own.jsonl, .*own.jsonl; .*Did you mean own\.json\?"),
        ("openai/gsm8k", "A data set on the hub is written hub:openai/gsm8k"),
        ("notes.txt", "data set 'notes.txt': `.txt` is not read: give json, jsonl, csv or parquet"),
        ("", "no data set ''"),
    ],
)  # fmt: skip
def test_names_that_are_not_there_say_what_is(tmp_path, name, message):
    (tmp_path / "own.json").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=message):
        resolve_dataset(name, folder=tmp_path)


def test_two_files_of_one_name_must_be_told_apart(tmp_path):
    (tmp_path / "own.json").touch()
    (tmp_path / "own.jsonl").touch()
    with pytest.raises(ValueError, match=r"'own' is one of .*own\.json, .*own\.jsonl: name it with its suffix"):
        resolve_dataset("own", folder=tmp_path)


def test_a_folder_that_is_not_there_is_no_traceback(tmp_path):
    with pytest.raises(ValueError, match="gone has none"):
        resolve_dataset("own", folder=tmp_path / "gone")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data sets are not at {REAL}")
@pytest.mark.parametrize(
    ("name", "data_type", "num_rows", "num_kept"),
    [
        ("MATH500", "math", 500, 500),
        ("AIME2024", "math", 30, 30),
        ("GSM8K", "math", 1319, 1319),
        ("MATH_train", "math", 7474, 7470),
        ("HumanEval", "code", 164, 164),
        ("MBPP", "code", 500, 500),
    ],
)
def test_the_real_data_sets(name, data_type, num_rows, num_kept):
    path = resolve_dataset(name, folder=REAL)
    rows = json.loads(path.read_text(encoding="utf-8"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks = load_tasks(path, data_type=data_type)
    assert (len(rows), len(tasks)) == (num_rows, num_kept)
    assert len(caught) == (num_rows != num_kept)
    assert [task.question for task in tasks] == [
        row["question"] for row in rows if data_type == "code" or row["ground_truth_answer"]
    ]


@pytest.mark.parametrize("field", ["question", "ground_truth_answer"])
def test_nan_of_a_table_is_a_blank(write, field):
    good = {"question": "?", "ground_truth_answer": "1"}
    path = write("a.json", json.dumps([good, {**good, field: float("nan")}]))
    with pytest.warns(UserWarning, match=f"{field} is NaN"):
        assert len(load_tasks(path, data_type="math")) == 1


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, min_size=1), min_size=1, max_size=3))
def test_any_rows_are_tasks_or_a_value_error(write, rows):
    path = write("a.json", json.dumps(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data_type in ("math", "code", "general"):
            try:
                tasks = load_tasks(path, data_type=data_type)
            except ValueError as error:
                assert str(path) in str(error)
            else:
                assert all(isinstance(task.question, str) and task.question.strip() for task in tasks)
                assert data_type != "math" or all(isinstance(task.answer, str) for task in tasks)
