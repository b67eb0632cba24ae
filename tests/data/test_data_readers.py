import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import readers
from data.readers import iter_rows

json_text = st.text(st.characters(exclude_categories=[]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | json_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(json_text, inner, max_size=3),
    max_leaves=6,
)
row_lists = st.lists(st.dictionaries(json_text, values, max_size=4), min_size=1, max_size=6)
any_file = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path, columns=None):
    return [row.values for row in iter_rows(path, columns)]


@pytest.mark.slow
@any_file
@given(rows=row_lists, indent=st.sampled_from([None, 0, 1, 4]), chunk=st.integers(1, 40), ascii_only=st.booleans())
def test_a_json_list_reads_as_json_reads_it_whatever_the_window(write, rows, indent, chunk, ascii_only):
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")
    path = write("rows.json", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_CHUNK_CHARS", chunk)
        assert read(path) == json.loads(text)


@any_file
@given(rows=row_lists, blank=st.sampled_from(["", "\n", "  \n\t\n"]))
def test_json_lines_read_by_either_suffix(write, rows, blank):
    text = blank + "\n".join(f"{json.dumps(row)}{blank}" for row in rows)
    for name in ("rows.jsonl", "rows.json"):
        assert read(write(name, text)) == [json.loads(json.dumps(row)) for row in rows]


@any_file
@given(rows=row_lists, data=st.data())
def test_a_cut_file_is_an_error_never_fewer_rows(write, rows, data):
    text = json.dumps(rows)
    cut = data.draw(st.integers(1, len(text) - 1))
    path = write("cut.json", text[:cut])
    with pytest.raises(ValueError, match=r"cut\.json, row \d+ \(line 1\): malformed JSON"):
        read(path)


@any_file
@given(text=st.text(max_size=60))
def test_no_text_whatever_ends_in_anything_but_rows_or_a_value_error(write, text):
    for name in ("any.json", "any.jsonl"):
        path = write(name, text.encode("utf-8", "surrogatepass"))
        try:
            assert all(isinstance(row, dict) for row in read(path))
        except ValueError as error:
            assert name in str(error)


def test_places_are_the_lines_an_editor_shows(write):
    pretty = write("rows.json", '\ufeff[\r\n  {"a": 1},\r\n\r\n  {\r\n "a": 2}\r\n]\r\n')
    assert [(row.number, row.place) for row in iter_rows(pretty)] == [(1, "row 1 (line 2)"), (2, "row 2 (line 4)")]
    lines = write("rows.jsonl", '\n{"a": 1}\n\n{"a": 2}\n')
    assert [(row.number, row.place) for row in iter_rows(lines)] == [(1, "line 2"), (2, "line 4")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "the file is empty"),
        ("a.json", " \n\t", "the file is empty"),
        ("a.jsonl", "\ufeff", "the file is empty"),
        ("a.json", '[{"a": 1},\n{"a": tru}]', r"row 2 \(line 2\): malformed JSON: Expecting value"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', r"row 1 \(line 2\): malformed JSON: expected ',' or '\]', found '\{'"),
        ("a.json", '[{"a": 1},\n]', r"row 2 \(line 2\): malformed JSON: Expecting value"),
        ("a.json", '[{"a": 1}]\n\n[', r"line 3\): malformed JSON: text after the end of the list"),
        ("a.json", '[{"a": 1},\n 3]', r"row 2 \(line 2\): expected an object with named fields, found int"),
        ("a.json", '[{"a": "x\n"}]', r"line 1\): malformed JSON: Invalid control character"),
        ("a.json", '{\n "data": [1]\n}', r"line 1: malformed JSON: .*; a \.json file holds a list of objects"),
        ("a.json", '"text"', r"line 1: expected an object with named fields, found str"),
        ("a.jsonl", '{"a": 1}\n{"a": ', r"line 2: malformed JSON: Expecting value \(column 7\)"),
        ("a.jsonl", '{"a": 1}\n[2]\n', r"line 2: expected an object with named fields, found list"),
        ("a.jsonl", '{"a": ' + "[" * 100_000, "line 1: malformed JSON: nested too deeply"),
        ("a.json", '[{"a": ' + "[" * 100_000, r"row 1 \(line 1\): malformed JSON: nested too deeply"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1: malformed JSON: Exceeds the limit"),
        ("a.json", b'[{"a": "\xff\xfe"}]', "line 1 is not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9"}\n', "line 2 is not UTF-8"),
        ("a.json", '[{"a": 1}]'.encode("utf-16"), "line 1 is not UTF-8"),
        ("a.txt", "a,b", r"cannot read \.txt; use \.json, \.jsonl, \.csv, \.parquet"),
        ("a", "[]", "cannot read a file without a suffix"),
        ("a.parquet", "PAR", "not a readable parquet file"),
    ],
)
def test_what_cannot_be_read_is_named(write, name, content, message):
    path = write(name, content)
    with pytest.raises(ValueError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json: no such file"):
        read(tmp_path / "gone.json")
    with pytest.raises(ValueError, match="is a folder, not a file"):
        read(tmp_path)


def test_rows_before_a_bad_one_are_read(write):
    rows = iter_rows(write("a.jsonl", '{"a": 1}\n{"a": 2}\nnonsense\n'))
    assert [next(rows).values["a"], next(rows).values["a"]] == [1, 2]
    with pytest.raises(ValueError, match="line 3"):
        next(rows)


def test_parquet_rows_with_lists_nulls_and_many_batches(tmp_path):
    rows = [{"question": f"q{i}", "test_list": [f"t{i}"], "prefix": None if i % 2 else "p"} for i in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == rows
    assert [row.place for row in iter_rows(tmp_path / "rows.parquet")][-1] == "row 2500"


def test_a_large_list_is_never_held(write):
    row = {"question": "x" * 4000, "ground_truth_answer": "1"}
    path = write("large.json", [row] * 4000)
    num_rows = 0
    tracemalloc.start()
    for _ in iter_rows(path):
        num_rows += 1
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == 4000 and path.stat().st_size > 16_000_000
    assert peak_bytes < 8_000_000


def test_columns_are_renamed_and_the_rest_is_kept(write):
    path = write("a.json", [{"problem": "p", "question": "old", "answer": 3, "extra": 1}])
    assert read(path, {"question": "problem", "ground_truth_answer": "answer"}) == [
        {"problem": "p", "answer": 3, "question": "p", "ground_truth_answer": 3, "extra": 1}
    ]
    assert read(path, {"question": "answer", "answer": "question"}) == [
        {"problem": "p", "question": 3, "answer": "old", "extra": 1}
    ]
    assert read(path, {"question": "nowhere", "answer": "question"}) == [{"problem": "p", "answer": "old", "extra": 1}]
    assert read(path, {"question": "nowhere"}) == [{"problem": "p", "question": "old", "answer": 3, "extra": 1}]
    assert read(path, {"question": "question"}) == [{"problem": "p", "question": "old", "answer": 3, "extra": 1}]


def test_csv_rows_are_texts_under_the_names_of_the_first_line(write):
    text = '\ufeffquestion,ground_truth_answer\r\n"2, 3",5\r\n\r\n"two\nlines","say ""x"""\r\n'
    wanted = [
        {"question": "2, 3", "ground_truth_answer": "5"},
        {"question": "two\nlines", "ground_truth_answer": 'say "x"'},
    ]
    path = write("rows.csv", text)
    assert read(path) == wanted and [row.place for row in iter_rows(path)] == ["line 2", "line 5"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no column"),
        ("question;answer\n1;2\n", "its columns are separated by ';'"),
        ("a,b,a\n1,2,3\n", "the first line names 'a' twice"),
        ("a,b\n1,2\n1,2,3\n", "line 3: 3 cells, and the first line names 2"),
        ('a,b\n1,"2\n', "malformed CSV"),
        (b"a,b\n\xff,2\n", "line 2 is not UTF-8"),
    ],
)
def test_a_csv_file_that_is_none_is_named_with_its_line(write, text, problem):
    with pytest.raises(ValueError, match=rf"rows\.csv.*{problem}"):
        read(write("rows.csv", text))


def test_a_column_may_be_a_field_inside_one(write):
    rows = [{"prompt": "p", "reward_model": {"ground_truth": "7", "style": "rule"}}, {"reward_model": None}]
    found = read(write("verl.json", rows), {"ground_truth_answer": "reward_model.ground_truth"})
    assert found[0]["ground_truth_answer"] == "7" and "ground_truth_answer" not in found[1]


def test_a_mapped_column_that_no_row_has_is_named_also_where_the_wanted_field_is_there(write, recwarn):
    path = write("rows.json", [{"question": "q"}, {"question": "r", "problem": "p"}])
    assert read(path, {"question": "problem"})[0] == {"question": "q"} and not recwarn
    with pytest.warns(UserWarning, match=r"no row has the column 'qestion' that dataset.columns maps question to"):
        read(path, {"question": "qestion"})
