"""Tasks whose prompts are chats, as TRL and verl write them; system prompts and few-shot examples before questions."""

import pytest

from data import load_tasks
from data.shots import load_shots
from data.tasks import Example, Task
from data.templates import Format, Writer

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
IM = "<|im_start|>{}\n{}<|im_end|>\n"


def load(write, *rows, **options):
    return load_tasks(write("rows.json", list(rows)), **{"data_type": "math"} | options)


def test_a_prompt_of_messages_is_a_task_and_its_last_turn_the_question(write):
    row = {"prompt": CHAT, "ground_truth_answer": "2"}
    (task,) = load(write, row)
    assert task.question == "1+1?" and task.turns == (("system", "Be brief."), ("user", "1+1?"))
    assert task.columns["prompt"] == CHAT and task.answer == "2"
    prompt = Writer(Format("sdar")).prompt(task)
    assert prompt == IM.format("system", "Be brief.") + IM.format("user", "1+1?") + "<|im_start|>assistant\n"


def test_verls_rows_are_read_by_their_columns(write):
    row = {"prompt": CHAT, "reward_model": {"style": "rule", "ground_truth": 2}, "data_source": "x"}
    columns = {"question": "prompt", "ground_truth_answer": "reward_model.ground_truth"}
    (task,) = load(write, row, columns=columns)
    assert task.answer == "2" and len(task.turns) == 2


def test_sharegpts_names_of_turns_and_a_system_column_are_read(write):
    chat = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    (task,) = load(write, {"prompt": chat, "system": "S"}, data_type="general")
    assert task.turns == (("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"))


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        ([], "field 'question' is missing"),
        ([*CHAT, {"role": "assistant", "content": "2"}], "does not end with a turn of the user"),
        ([{"role": "tool", "content": "2"}], "no role of human"),
        ([{"role": "user", "content": ["2"]}], "expected text"),
    ],
)
def test_a_chat_that_asks_nothing_is_named(write, chat, problem):
    with pytest.raises(ValueError, match=problem):
        load(write, {"prompt": chat, "ground_truth_answer": "2"})


def test_control_tokens_in_turns_of_a_chat_are_text(write):
    (task,) = load(write, {"prompt": [{"role": "user", "content": "a<|im_end|>b"}]}, data_type="general")
    assert Writer(Format("sdar")).prompt(task).count("<|im_end|>") == 1


@pytest.mark.parametrize("template", ["plain", "Q: {{problem}}"])
def test_a_chat_has_no_place_in_a_template_of_one_text(write, template):
    (task,) = load(write, {"prompt": CHAT, "ground_truth_answer": "2"})
    with pytest.raises(ValueError, match="is a chat, which has no place in it: use 'auto' or 'chat'"):
        Writer(Format("sdar", template=template)).prompt(task)


def test_system_and_examples_stand_before_a_question_as_turns():
    how = Format("sdar", system="S", shots=(("2+2?", "4<|im_end|>"),))
    plain, asked = Writer(Format("sdar")), Writer(how).prompt(Task("1", "1+1?", "2", {}))
    shot, question = (plain.prompt(Task("1", text, None, {})) for text in ("2+2?", "1+1?"))
    guarded = asked.replace("4<\ufdd0|im_end|>", "4")
    assert guarded == IM.format("system", "S") + shot + "4<|im_end|>\n" + question


def test_a_chat_keeps_its_own_system_prompt_and_gets_the_examples_after_it(write):
    (task,) = load(write, {"prompt": CHAT, "ground_truth_answer": "2"})
    asked = Writer(Format("sdar", system="S", shots=(("2+2?", "4"),))).prompt(task)
    turns = [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "1+1?")]
    assert asked == "".join(IM.format(*turn) for turn in turns) + "<|im_start|>assistant\n"


def test_a_conversation_of_fine_tuning_without_a_system_prompt_gets_it():
    writer = Writer(Format("sdar", system="S"))
    for turns, system in (((("user", "q"),), "S"), ((("system", "own"), ("user", "q")), "own")):
        prompt, _ = writer.example(Example("", "a", None, turns))
        assert prompt == IM.format("system", system) + IM.format("user", "q") + "<|im_start|>assistant\n"


@pytest.mark.parametrize(("field", "given"), [("system", "S"), ("few_shot", (("q", "a"),))])
def test_a_template_without_turns_has_no_place_for_them(field, given):
    name = {"few_shot": "shots"}.get(field, field)
    with pytest.raises(ValueError, match=f"no place for dataset.{field} in it"):
        Writer(Format("sdar", template="plain", **{name: given}))


def test_examples_come_from_files_under_the_names_that_they_have(write):
    rows = [{"question": "a", "ground_truth_answer": 1}, {"prompt": "b", "response": "2"}]
    assert load_shots(write("shots.json", rows)) == [("a", "1"), ("b", "2")]
    assert load_shots({"question": "a", "answer": "1"}) == [("a", "1")]
    with pytest.raises(ValueError, match=r"shots.json, row 1 \(line 1\): field 'answer' is missing"):
        load_shots(write("shots.json", [{"question": "a"}]))
