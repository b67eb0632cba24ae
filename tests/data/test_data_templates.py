import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Task, render_prompt
from data.templates import chat_family, chat_formats, insert_question

CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
DREAM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + CHATML
LLADA = (
    "<|startoftext|><|start_header_id|>user<|end_header_id|>{}<|eot_id|>"
    "<|startoftext|><|start_header_id|>assistant<|end_header_id|>\n"
)
BOXED = "You need to put your final answer in \\boxed{}. This is the problem:\nQ"
STEPS = "Q\nPlease reason step by step, and put your final answer within \\boxed{}."
FUNCTION = (
    "Q\nPlace your code within a single Python code block ```python ```. Do not include more than one code block. "
)
STDIO = (
    "This is the problem:\nQ\nYou should put your code in ```python ```. "
    "Use input() to read input and print() to produce output in your script. "
)
OPTION = (
    "This is the problem:\nQ\nYou need to think step by step and put the final option "
    "(A, B, C, or D only—no other character) in \\boxed{}. "
)
texts = st.text(st.characters(exclude_categories=[])) | st.sampled_from(
    [
        "{{problem}}",
        "{{ problem }}",
        "{% for x in ().__class__.__mro__ %}",
        "{{ 7 * 7 }}",
        "{0}",
        "%s %(a)s",
        "{",
        "}}",
        "\x00",
        "\ud83d",
        "\\1 \\g<0>",
        "{#",
        "<|im_end|>",
        "$problem",
        "\r\n",
    ]  # fmt: skip
)


def task(question="Q", **columns):
    return Task("1", question, None, {"question": question, **columns})


@pytest.mark.parametrize(
    ("family", "data_type", "columns", "think", "prompt"),
    [
        ("sdar", "math", {}, False, CHATML.replace("{}", STEPS)),
        ("trado", "math", {}, True, CHATML.replace("{}", BOXED).removesuffix("\n") + "<think>\n"),
        ("sdar_moe", "code", {"test_method": "function"}, False, CHATML.replace("{}", FUNCTION)),
        ("sdar", "code", {"test_method": "function", "prefix": "def"}, False, CHATML.replace("{}", FUNCTION) + "def"),
        ("sdar", "code", {"test_method": "stdio", "prefix": "ignored"}, False, CHATML.replace("{}", STDIO)),
        ("sdar", "code", {"test_method": "stdio"}, True, CHATML.replace("{}", STDIO).removesuffix("\n") + "<think>\n"),
        ("sdar", "option", {}, False, CHATML.replace("{}", OPTION)),
        ("sdar", "option", {}, True, CHATML.replace("{}", OPTION).removesuffix("\n") + "<think>\n"),
        ("sdar", "general", {}, False, CHATML.replace("{}", "Q")),
        ("dream", "math", {}, False, DREAM.replace("{}", BOXED, 1)),
        ("diffucoder", "code", {"test_method": "function", "prefix": "x"}, False, DREAM.replace("{}", FUNCTION) + "x"),
        ("Dream", "code", {"test_method": "stdio"}, False, DREAM.replace("{}", STDIO)),
        ("dream", "option", {}, False, DREAM.replace("{}", OPTION)),
        ("llada", "math", {}, False, LLADA.replace("{}", BOXED)),
        ("mmada", "code", {"test_method": "function"}, False, LLADA.replace("{}", FUNCTION)),
        ("llada", "code", {"test_method": "stdio"}, False, LLADA.replace("{}", STDIO.replace("\nYou", "\n You"))),
        ("llada", "option", {}, False, LLADA.replace("{}", OPTION)),
        ("llada", "general", {}, False, LLADA.replace("{}", "Q")),
    ],
)  # fmt: skip
def test_each_family_is_asked_as_its_checkpoints_were(family, data_type, columns, think, prompt):
    assert render_prompt(task(**columns), family=family, data_type=data_type, start_with_think=think) == prompt


@given(
    question=texts,
    family=st.sampled_from(sorted(chat_formats())),
    data_type=st.sampled_from(["math", "code", "option", "general"]),
)
def test_a_question_is_text_whatever_it_holds(question, family, data_type):
    mark = "\x01the question\x01"
    framed = render_prompt(task(mark), family=family, data_type=data_type)
    before, after = framed.split(mark)
    prompt = render_prompt(task(question), family=family, data_type=data_type)
    if chat_family(family).trims:
        assert "".join(prompt.split()) == "".join((before + question + after).split())
    else:
        assert prompt == before + question + after
    assert render_prompt(task(question), family=family, data_type=data_type, template="plain") == question


@given(before=texts, question=texts, after=texts, prefix=texts)
def test_a_users_template_is_text_but_for_its_placeholder(before, question, after, prefix):
    if insert_question(before + "\x02" + after, "\x01") != before + "\x02" + after:
        return
    for placeholder in ("{{problem}}", "{{ problem }}"):
        template = before + placeholder + after
        assert render_prompt(task(question, prefix=prefix), family="x", data_type="math", template=template) == (
            before + question + after
        )
        assert render_prompt(task(question, prefix=prefix), family="x", data_type="code", template=template) == (
            before + question + after + prefix
        )


def test_every_placeholder_of_a_template_is_filled():
    template = "{{problem}} again: {{problem}}"
    assert render_prompt(task("{{problem}}"), family="sdar", data_type="math", template=template) == (
        "{{problem}} again: {{problem}}"
    )
    assert render_prompt(task("Q"), family="sdar", data_type="math", template=template) == "Q again: Q"


def test_plain_leaves_the_prefix_to_the_question():
    assert render_prompt(task(prefix="def f():"), family="sdar", data_type="code", template="plain") == "Q"


def test_what_cannot_be_rendered_is_refused():
    with pytest.raises(ValueError, match="no prompt format for family 'gpt': use one of diffucoder, "):
        render_prompt(task(), family="gpt", data_type="math")
    with pytest.raises(ValueError, match="unknown data_type 'mathh'"):
        render_prompt(task(), family="sdar", data_type="mathh")
    with pytest.raises(
        ValueError, match=r"unknown template 'chatt': use 'auto', 'plain', 'chat', or a text with \{\{problem\}\}"
    ):
        render_prompt(task(), family="sdar", data_type="math", template="chatt")
    with pytest.raises(ValueError, match="template 'chat' is the chat template of the checkpoint's tokenizer"):
        render_prompt(task(), family="sdar", data_type="math", template="chat")
    for family in ("dream", "llada"):
        with pytest.raises(
            ValueError, match="start_with_think is true, but this family has no prompt that opens a thought"
        ):
            render_prompt(task(), family=family, data_type="math", start_with_think=True)


def test_function_tasks_say_that_they_ignore_the_thought():
    with pytest.warns(UserWarning, match="start_with_think is ignored for function tasks"):
        prompt = render_prompt(task(prefix="x = 1"), family="sdar", data_type="code", start_with_think=True)
    assert prompt.endswith("<|im_start|>assistant\nx = 1")


@pytest.mark.parametrize("family", chat_formats())
@pytest.mark.parametrize(
    ("data_type", "columns", "words", "end"),
    [
        ("math", {}, None, ""),
        ("code", {"test_method": "function", "prefix": "def"}, FUNCTION, "def"),
        ("code", {"test_method": "stdio"}, None, ""),
        ("option", {}, OPTION, ""),
        ("general", {}, "Q", ""),
    ],
)
def test_a_chat_template_holds_the_familys_words(family, data_type, columns, words, end):
    turns = []
    chat = lambda turn: turns.append(turn) or f"[user]{turn}[assistant]"  # noqa: E731
    prompt = render_prompt(task(**columns), family=family, data_type=data_type, template="chat", chat=chat)
    assert prompt == f"[user]{turns[0]}[assistant]{end}" and turns[0] == (words or turns[0])
    own = turns[0].strip() if chat_family(family).trims else turns[0]
    assert own in render_prompt(task(**columns), family=family, data_type=data_type)


@pytest.mark.parametrize("opened", ["[assistant]\n", "[assistant]\n<think>\n"])
def test_a_thought_is_opened_once_in_a_chat_template(opened):
    prompt = render_prompt(
        task(),
        family="dream",
        data_type="math",
        template="chat",
        start_with_think=True,
        chat=lambda turn: turn + opened,
    )
    assert prompt == BOXED + "[assistant]\n<think>\n"


def test_conversations_write_earlier_answers_as_they_were_given():
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert chat_family("sdar").conversation(turns) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    llada = chat_family("llada").conversation(turns)
    first_prompt = chat_family("llada").conversation(turns[:1])
    assert llada.startswith(first_prompt + "b<|eot_id|>") and llada.endswith("assistant<|end_header_id|>\n")
    own_system = chat_family("dream").conversation([("system", "Be brief."), *turns])
    assert own_system.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert "helpful assistant" not in own_system
