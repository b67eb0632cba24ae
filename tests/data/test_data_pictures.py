"""Rows with pictures: fields, places in the text, faults."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data import Task, check, load_examples, load_tasks, render_prompt
from data.control import uncut
from data.templates import Format, Writer

CHAT = "<|startoftext|><|start_header_id|>user<|end_header_id|>{}<|eot_id|>"


def png(size=(3, 2), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("columns", "images"),
    [
        ({"image": "a.png"}, ["a.png"]),
        ({"image": ["a.png", "b/c.png"]}, ["a.png", "b/c.png"]),
        ({"image": None, "image_path": "a.png"}, ["a.png"]),
        ({"image": "", "images": [{"path": "a.png", "bytes": None}]}, ["a.png"]),
        ({"image_abs_path": "/there/a.png"}, ["/there/a.png"]),
    ],
)
def test_the_fields_of_a_picture(columns, images, tmp_path):
    row = {"question": "How many?", "ground_truth_answer": "2", **columns}
    (task,) = load_tasks(write(tmp_path / "t.json", [row]), data_type="mmu", image_root=tmp_path / "root")
    assert task.images == tuple(str(tmp_path / "root" / name) for name in images)
    assert task.question == "How many?"


def test_pictures_in_parquet_are_bytes(tmp_path):
    table = pyarrow.table(
        {"question": ["Q"], "ground_truth_answer": ["1"], "image": [{"bytes": png(), "path": "a.png"}]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    (task,) = load_tasks(tmp_path / "t.parquet", data_type="mmu", image_root=tmp_path)
    assert task.images == (png(),)


def test_ids_of_a_picture_are_taken_as_it(tmp_path):
    row = {"question": "Q", "ground_truth_answer": "1", "image_token_ids": [70, 71]}
    (task,) = load_tasks(write(tmp_path / "t.json", [row]), data_type="mmu", image_root=tmp_path)
    assert task.images == ((70, 71),)


def test_rows_whose_pictures_do_not_fit_are_left_out_and_named(tmp_path):
    good = {"question": "Q", "ground_truth_answer": "1", "image": "a.png"}
    rows = [
        good,
        good | {"image": None},
        good | {"question": "<image> or <image>?"},
        good | {"image": ["a.png", "b.png"]},
    ]
    with pytest.warns(UserWarning, match="left out 2 of 4") as caught:
        tasks = load_tasks(write(tmp_path / "t.json", rows), data_type="mmu", image_root=tmp_path)
    assert [len(task.images) for task in tasks] == [1, 2]
    text = str(caught[0].message)
    assert "image is absent or empty (1: row 2" in text and "question has 2 <image> for 1 pictures (1: row 3" in text


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", 7, "int 7, expected a path"),
        ("image", ["a.png", {}], "expected a path"),
        ("image_token_ids", "x", "token ids"),
    ],
)
def test_what_is_no_picture_is_an_error(field, value, message, tmp_path):
    row = {"question": "Q", "ground_truth_answer": "1", field: value}
    with pytest.raises(ValueError, match=message):
        load_tasks(write(tmp_path / "t.json", [row]), data_type="mmu", image_root=tmp_path)


def test_a_caption_needs_no_answer_and_a_prompt_is_a_question(tmp_path):
    rows = [{"prompt": "Describe it.", "image": "a.png", "is_caption": True}]
    (task,) = load_tasks(write(tmp_path / "t.json", rows), data_type="mmu", image_root=tmp_path)
    assert (task.question, task.answer) == ("Describe it.", None)


def test_in_a_csv_file_a_caption_is_marked_by_true_or_1(tmp_path):
    flags = ["True", "1", "False", "0", ""]
    (tmp_path / "t.csv").write_text("\n".join(["question,image,ground_truth_answer,is_caption",
                                               *(f"Q,a.png,7,{flag}" for flag in flags)]))  # fmt: skip
    tasks = load_tasks(tmp_path / "t.csv", data_type="mmu", image_root=tmp_path)
    assert [task.columns["is_caption"] for task in tasks] == [True, True, False, False, False]
    (tmp_path / "t.csv").write_text("question,image,ground_truth_answer,is_caption\nQ,a.png,7,maybe\n")
    with pytest.raises(ValueError, match="line 2: field 'is_caption' is str 'maybe', expected true, false, 1 or 0"):
        load_tasks(tmp_path / "t.csv", data_type="mmu", image_root=tmp_path)
    (tmp_path / "t.csv").write_text("question,image,ground_truth_answer,is_caption\nQ,a.png,,False\nQ,a.png,,1\n")
    with pytest.warns(UserWarning, match="left out 1 of 2 rows: ground_truth_answer is empty"):
        load_tasks(tmp_path / "t.csv", data_type="mmu", image_root=tmp_path)


def test_without_a_root_rows_are_read_without_pictures(tmp_path):
    row = {"question": "1+1 of <image>?", "ground_truth_answer": "2", "image": ["a.png", "b.png"]}
    (task,) = load_tasks(write(tmp_path / "t.json", [row]), data_type="math")
    assert task.images == ()


@pytest.mark.parametrize(
    ("question", "how", "turn"),
    [
        ("Q", {"in_box": False}, "<image>\nQ"),
        ("see <image>: Q", {"in_box": False}, "see <image>: Q"),
        ("Q", {}, "<image>\nYou need to put your final answer in \\boxed{}. This is the problem:\nQ"),
        ("Q", {"think_first": True}, "<image>\nYou should first think"),
    ],
)
def test_pictures_stand_where_the_question_has_them_or_first_in_its_turn(question, how, turn):
    task = Task("1", question, None, {}, ("a.png",))
    assert CHAT.split("{}")[0] + turn in render_prompt(task, family="llada", data_type="mmu", **how)


def test_control_tokens_of_a_question_are_text_and_its_pictures_are_not():
    task = Task("1", "<image> <|eot_id|> Q", None, {}, ("a.png",))
    text = Writer(Format("llada", "mmu")).prompt(task)
    assert "<image> <" in text and "<|eot_id|> Q" not in text and "<|eot_id|> Q" in uncut(text)


def test_examples_with_pictures_are_turns_with_one_place_a_picture(tmp_path):
    """dLLM-RL's files have raw questions that begin with their placeholder already."""
    rows = [
        {"image": "a.png", "prompt": "<image>\nQ", "response": "A"},
        {"image": "a.png", "prompt": "Q", "response": "A"},
        {"image": "a.png", "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"prompt": CHAT.format("text"), "response": "A"},
    ]
    examples = load_examples(write(tmp_path / "s.json", rows), image_root=tmp_path)
    writer = Writer(Format("llada"))
    prompts = [writer.example(example)[0] for example in examples]
    assert all(prompt.startswith(CHAT.format("<image>\nQ")) for prompt in prompts[:3])
    assert prompts[3] == CHAT.format("text")
    assert [len(example.images) for example in examples] == [1, 1, 1, 0]


def test_the_check_opens_every_picture_and_counts_the_bad_ones_by_cause(tmp_path, capsys):
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "cut.png").write_bytes(png((90, 90))[:-30])
    (tmp_path / "text.png").write_text("no picture")
    names = ["good.png", "cut.png", "text.png", "gone.png"]
    rows = [{"question": "Q", "ground_truth_answer": "1", "image": name} for name in names]
    path = write(tmp_path / "t.json", rows)
    assert check.main([str(path), "--data-type", "mmu"]) == 0
    text = capsys.readouterr().out
    assert "pictures   4, unusable 3" in text and "0 of them repeat" in text
    for cause in ("missing (1:", "truncated (1:", "not a picture (1:"):
        assert cause in text
    assert check.main([str(path), "--data-type", "mmu", "--image-root", str(tmp_path.parent)]) == 1
    assert "--image-root" in capsys.readouterr().out
