"""Chat templates, which are programs that somebody else wrote."""

import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from data import check, preprocess_sft
from data.chat import chat_of

TINY = Path(__file__).parents[2] / "configs" / "tiny_model"
ECHO = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def folder_with(template, folder):
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def chat(template, folder):
    return chat_of(PreTrainedTokenizerFast.from_pretrained(folder_with(template, folder)))


def test_a_template_writes_the_turns(tmp_path):
    assert chat(ECHO, tmp_path)([("system", "s"), ("user", " u\n")]) == "[system]s[user]u>"
    assert chat_of(PreTrainedTokenizerFast.from_pretrained(TINY)) is None


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only\n two roles \x1b[31m') }}",
        "{{ messages[7].content }}",
        "{% for m in messages %}",
        "{{ 1 / 0 }}",
        "{{ undefined.attribute.of }}",
        "{% include 'x' %}",
        "{{ nowhere() }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ ''.__class__.__mro__ }}{{ messages.__class__.__base__.__subclasses__() }}",
    ],
)
def test_a_template_that_fails_is_one_line(template, tmp_path):
    with pytest.raises(ValueError) as error:
        chat(template, tmp_path)([("user", "hi")])
    assert str(error.value).startswith("the tokenizer's chat template") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "hello",
        "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}",
        "{{ messages[0].content[:5] }}",
        "{{ messages[0].content | upper }}",
        "{{ messages[0].role }}",
    ],
)
def test_a_template_that_drops_or_changes_the_question_is_refused(template, tmp_path):
    made = chat(template or "{# nothing #}", tmp_path)
    with pytest.raises(ValueError, match=r"leaves the user's turn out \('what is six"):
        made([("user", "what is six times seven?")])


def test_the_commands_read_a_template_that_has_a_file_of_its_own(write, tmp_path, capsys):
    folder = folder_with(ECHO, tmp_path / "model")
    tasks = write("tasks.json", [{"question": "1+1=", "ground_truth_answer": "2", "response": "2"}])
    options = ["--tokenizer", str(folder), "--template", "chat", "--family", "sdar"]
    assert check.main([str(tasks), "--data-type", "math", *options]) == 0
    assert preprocess_sft.main([str(tasks), "-o", str(tmp_path / "out.json"), "--data-type", "general", *options]) == 0
    assert "first prompt:\n[user]1+1=>" in capsys.readouterr().out
    folder_with("{{ raise_exception('no') }}", folder)
    assert check.main([str(tasks), "--data-type", "math", *options]) == 1
    assert preprocess_sft.main([str(tasks), "-o", str(tmp_path / "out.json"), *options]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("chat template fails (TemplateError: no)" in line for line in lines)
