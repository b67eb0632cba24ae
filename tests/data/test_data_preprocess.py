import json
import subprocess
import sys

import pytest
from fake_hub import ROOT
from hypothesis import given
from hypothesis import strategies as st

from data import Task, load_examples, preprocess_sft, render_prompt
from data.faults import Fault
from data.preprocess_sft import convert, make_pair
from data.readers import Record
from data.templates import Format, Writer, chat_family, chat_formats

CHAT = [("user", "hi"), ("assistant", "Hello."), ("user", "and?"), ("assistant", "Bye.")]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), inner, max_size=3)
    ),
)


def messages(turns, role="role", text="content"):
    return [{role: "human" if role == "from" and who == "user" else who, text: said} for who, said in turns]


def pair_of(values, family="sdar", **how):
    return make_pair(Record(1, "line 1", values), Writer(Format(family, **how)), {})


@pytest.mark.parametrize("family", sorted(chat_formats()))
def test_questions_are_put_as_in_rl_and_answers_end(family):
    end = {"llada2": "<|role_end|>", "diffusion_gemma": "<turn|>"} | dict.fromkeys(
        ("llada", "lladav", "mmada"), "<|eot_id|>"
    )
    task = Task("", "1+1?", None, {})
    for data_type in ("math", "general", "option"):
        assert pair_of({"question": "1+1?", "response": "2"}, family, data_type=data_type) == {
            "prompt": render_prompt(task, family=family, data_type=data_type),
            "response": f"2{end.get(family, '<|im_end|>')}",
        }
    assert pair_of({"prompt": "1+1?", "response": "2"}, family) == pair_of(
        {"question": "1+1?", "response": "2"}, family
    )


def test_an_end_of_turn_that_is_there_is_not_doubled():
    for response in ("2<|im_end|>", "2<|im_end|>\n"):
        assert pair_of({"question": "?", "response": response})["response"] == "2<|im_end|>"
    assert pair_of({"question": "?", "response": "2<|im_end|>"}, "llada")["response"] == "2<|im_end|><|eot_id|>"


@pytest.mark.parametrize("family", ["sdar", "dream", "llada"])
def test_of_a_conversation_the_last_answer_is_the_response(family):
    expected = {
        "prompt": chat_family(family).conversation(CHAT[:-1]),
        "response": "Bye." + chat_family(family).end_of_turn,
    }
    assert pair_of({"messages": messages(CHAT)}, family) == expected
    sharegpt = [("human" if who == "user" else "gpt", said) for who, said in CHAT]
    assert pair_of({"conversations": messages(sharegpt, "from", "value")}, family) == expected


def test_a_thought_that_the_prompt_opens_is_not_opened_twice():
    values = {"question": "?", "response": "<think>\nhm</think>2"}
    assert pair_of(values, start_with_think=True)["response"] == "hm</think>2<|im_end|>"
    assert pair_of(values)["response"] == "<think>\nhm</think>2<|im_end|>"


@pytest.mark.parametrize(
    ("values", "message", "blank"),
    [
        ({"question": "?"}, "field 'response' is missing", False),
        ({"response": "r"}, "field 'question' is missing", False),
        ({"question": "?", "response": " "}, "field 'response' is empty", True),
        ({"question": "?", "response": "\ud800"}, "field 'response' holds a lone surrogate", True),
        ({"messages": []}, "field 'messages' has no turn", True),
        ({"messages": "hi"}, "field 'messages' is str 'hi', expected a list of turns", False),
        ({"messages": ["hi"]}, "turn 1: no role of human, gpt, user", False),
        ({"messages": messages([("user", "a"), ("tool", "b")])}, "turn 2: no role of", False),
        ({"messages": messages([("user", "a"), ("assistant", None)])}, "turn 2: content is NoneType None", False),
        ({"messages": messages([("user", "a")])}, "does not end with a response of the assistant", True),
        ({"messages": messages([("user", "a"), ("assistant", "")])}, "does not end with a response", True),
        ({"messages": messages([("assistant", "a")])}, "has no turn of the user", True),
    ],
)  # fmt: skip
def test_rows_that_make_no_pair_say_why(values, message, blank):
    fault = pair_of(values)
    assert isinstance(fault, Fault) and message in str(fault) and fault.blank is blank


@pytest.mark.slow
@given(turns=anything, field=st.sampled_from(["messages", "conversations", "question", "response"]))
def test_any_row_is_a_pair_or_a_fault(turns, field):
    pair = pair_of({"question": "?", "response": "r", field: turns})
    assert isinstance(pair, Fault) or set(pair) == {"prompt", "response"}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_what_is_written_is_what_sft_reads(write, tmp_path, suffix):
    rows = [{"question": f"é {n} \x00 {{{{x}}}}", "response": "r" * n} for n in range(4)]
    with_steps = [*rows, {"question": "?", "response": "r", "step_map": [1]}]
    target = tmp_path / "deep" / f"out{suffix}"
    with pytest.warns(UserWarning, match="step_map of 1 rows left out"):
        num_pairs, dropped = convert(write("in.json", with_steps), target, Writer(Format("sdar")))
    assert num_pairs == 4 and [fault.place for fault in dropped] == ["row 1 (line 1)"]
    examples = load_examples(target)
    assert [example.response for example in examples] == [f"{'r' * n}<|im_end|>" for n in (1, 2, 3)] + ["r<|im_end|>"]
    assert examples[0].prompt == render_prompt(Task("", rows[1]["question"], None, {}), family="sdar", data_type="math")
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_failure_leaves_the_old_file(write, tmp_path):
    target = write("out.json", "old")
    for rows in ([{"question": "?", "response": "r"}, {"question": "?"}], [{"question": "", "response": ""}]):
        with pytest.raises(ValueError, match="row 2 .*'response' is missing|no usable row: question is empty"):
            convert(write("in.json", rows), target, Writer(Format("sdar")))
        assert target.read_text() == "old"
    with pytest.raises(ValueError, match=r"out\.txt: the pairs are written as \.json or \.jsonl"):
        convert(write("in.json", []), tmp_path / "out.txt", Writer(Format("sdar")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.json", "out.json"]


def test_a_file_may_be_rewritten_in_its_place(write):
    path = write("own.json", [{"question": "?", "response": "r"}])
    convert(path, path, Writer(Format("llada")))
    assert load_examples(path)[0].response == "r<|eot_id|>"


@pytest.mark.parametrize(("folder", "script"), [(ROOT, "data/preprocess_sft.py"), (ROOT / "data", "preprocess_sft.py")])
def test_the_command(write, tmp_path, folder, script):
    source = write("in.jsonl", "\n".join(json.dumps({"q": "1+1?", "solution": "2"}) for _ in range(3)))
    columns = "question=q,response=solution"
    command = [sys.executable, script, source, "-o", tmp_path / "out.json", "--family", "dream", "--columns", columns]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path / 'out.json'}: 3 pairs for dream"
    assert "You are a helpful assistant." in done.stdout


def test_the_command_says_what_is_wrong(write, tmp_path, capsys):
    source = write("in.json", [{"question": "?", "answer": "2"}])
    assert preprocess_sft.main([str(source), "-o", str(tmp_path / "out.json"), "--family", "sdar"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: {source}, row 1 (line 1): field 'response' is missing; the row has question, answer"
    )
