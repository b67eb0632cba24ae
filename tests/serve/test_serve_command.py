"""serve.py and dllm-chat as they are typed: mistakes, start, stop; and what docs/serving.md says to type."""

import io
import re
import signal
import socket
import subprocess
import sys

import httpx2
import pytest
from commands import finish
from forked import start
from rich.console import Console
from serving import serving
from test_docs import ROOT, blocks, commands, script_of

from serve import command as command_module
from serve import server as server_module
from serve.chat import MASK, Chat, converse
from serve.loading import check, load_sampler, sized
from serve.settings import ChatSettings, ServeSettings, help_text, read_settings

PAGE = ROOT / "docs" / "serving.md"


def run(main, arguments, monkeypatch, capsys):
    """Exit status and stderr of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("main", [command_module.main, command_module.chat])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model is not set"),
        (["model=/nowhere/at/all"], "model: "),
        (["model={}", "strategy=best"], "best"),
        (["model={}", "cache=dual"], "full attention"),
        (["model={}", "max_sequence_tokens=9999"], "256 positions"),
        (["model={}", "max_new_tokens=256"], "no room for a prompt"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(main, arguments, message, model_folder, monkeypatch, capsys):
    status, error = run(main, [a.format(model_folder) for a in arguments], monkeypatch, capsys)
    assert status == 2 and message in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "typed", "says"),
    [
        ("serve", "prot=1", "Did you mean port"),
        ("chat", "sed=1", "Did you mean seed"),
        ("chat", "strategy=nope", "strategy is 'nope'; choose from low_confidence_static"),
        (
            "evaluate",
            "config=configs/tiny_eval.yaml rollout.strategy=nope",
            "rollout.strategy is 'nope'; choose",
        ),
        ("rl", "config=configs/rl_tiny.yaml training.objective=clpi", "Did you mean 'clip'"),
    ],
)
def test_a_mistake_is_named_before_torch_is_loaded(command, typed, says):
    code = f"import sys, dllm_commands; sys.argv[1:] = {typed.split()}\ntry: dllm_commands.{command}()\n"
    code += "finally: print('torch' in sys.modules, 'transformers' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "False False\n") and says in ended.stderr


def test_an_empty_key_is_refused(model_folder, monkeypatch, capsys):
    status, error = run(command_module.main, [f"model={model_folder}", "api_key=''"], monkeypatch, capsys)
    assert status == 2 and "api_key is empty" in error


def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(model_folder, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, error = run(command_module.main, [f"model={model_folder}", f"port={port}"], monkeypatch, capsys)
    assert status == 2 and f"port={port}" in error


def test_a_model_without_a_tokenizer_is_refused(tmp_path, monkeypatch, capsys):
    from helpers import tiny_checkpoint

    status, error = run(command_module.main, [f"model={tiny_checkpoint(tmp_path)}"], monkeypatch, capsys)
    assert status == 2 and "no tokenizer" in error


def test_a_model_that_cannot_be_loaded_ends_the_server(model_folder, monkeypatch, capsys):
    def fails(settings, spec):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(server_module, "load_sampler", fails)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    status, error = run(command_module.main, [f"model={model_folder}", "port=0"], monkeypatch, capsys)
    assert status == 1 and "out of memory" in error


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_asked_to_stop_finishes_what_is_open_and_ends_with_0(model_folder, number):
    arguments = [
        "serve.py",
        f"model={model_folder}",
        "device=cpu",
        "port=0",
        "max_new_tokens=64",
        "strategy=sequential",
    ]
    process = start(arguments)
    lines = [process.stdout.readline(), process.stdout.readline()]
    url = lines[1].split(" answers at ")[1].split("/v1")[0]
    assert "loading" in lines[0] and "127.0.0.1" in url
    body = {"prompt": "1=", "stream": True, "max_tokens": 64, "n": 8, "seed": 1}
    with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        events = answer.iter_lines()
        next(events)
        process.send_signal(number)
        rest = list(events)
    status, output, error = finish(process)
    assert status == 0 and output.endswith("stopped\n") and error == ""
    assert rest[-2] == "data: [DONE]" and sum('"finish_reason": "' in line for line in rest) == 8


# the chat


@pytest.fixture(scope="module")
def chat(model_folder):
    settings = ChatSettings(model=str(model_folder), device="cpu", max_new_tokens=16, seed=3, strategy="sequential")
    spec = check(settings)
    settings = sized(settings, spec)
    return Chat(load_sampler(settings, spec, max_slots=1), settings)


def test_every_step_of_an_answer_is_shown_and_the_last_is_the_answer(chat):
    chat.reset()
    shown = []
    rollout = chat.answer("12=", shown.append)
    counts = [sum(cell.state == "new" for cell in cells) for cells in shown]
    assert len(shown) == rollout.num_steps and all(counts[:-1]) and counts[-1] == 0
    assert any(cell.text == MASK for cell in shown[0])
    assert "".join(cell.text for cell in shown[-1]) == chat.text(rollout)
    assert chat.turns == [("user", "12="), ("assistant", chat.text(rollout))]


@pytest.mark.slow
def test_an_answer_goes_on_from_the_conversation_until_it_is_reset(chat):
    chat.reset()
    first = chat.answer("12=", lambda cells: None)
    again = chat.answer("12=", lambda cells: None)
    assert again.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids and len(again.prompt_ids) > len(
        first.prompt_ids
    )
    chat.reset()
    assert chat.answer("12=", lambda cells: None) == first


def test_a_stopped_answer_leaves_the_conversation_and_its_slot(chat):
    def interrupt(cells):
        raise KeyboardInterrupt

    chat.reset()
    with pytest.raises(KeyboardInterrupt):
        chat.answer("12=", interrupt)
    assert chat.turns == [] and chat.session.running == 0


def test_a_conversation_that_leaves_no_room_is_named(chat):
    chat.reset()
    with pytest.raises(ValueError, match="/reset begins anew"):
        chat.answer("1" * 300, lambda cells: None)


def test_a_pipe_gets_the_answers_alone(chat, monkeypatch):
    chat.reset()
    want = chat.text(chat.answer("12=", lambda cells: None))
    chat.reset()
    monkeypatch.setattr(sys, "stdin", io.StringIO("12=\n\n/reset\n/quit\n12=\n"))
    console = Console(file=io.StringIO(), width=4000)
    converse(chat, console)
    assert console.file.getvalue() == f"{want}\nthe conversation begins anew\n"


@pytest.mark.slow
def test_a_terminal_sees_the_unmasking_and_statistics(chat, monkeypatch):
    chat.reset()
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    questions = iter(["12=", "/help", "/quit"])
    monkeypatch.setattr(console, "input", lambda prompt: next(questions))
    converse(chat, console)
    text = console.file.getvalue()
    assert MASK in text and re.search(r"\d+ tokens in \d+ steps", text) and "/reset forgets" in text


# the page


TYPED = sorted({c for page, c in commands() if script_of(c)[0] in ("serve.py", "dllm-serve", "dllm-chat")})


@pytest.mark.parametrize("command", TYPED)
def test_what_the_pages_say_to_type_is_read_and_checked(command, model_folder, monkeypatch):
    monkeypatch.setenv("DLLM_KEY", "secret")
    script, arguments = script_of(command)
    arguments = [f"model={model_folder}" if a.startswith("model=") else a for a in arguments]
    kind = ChatSettings if script == "dllm-chat" else ServeSettings
    settings = read_settings(kind, arguments, "usage")
    sized(settings, check(settings))


@pytest.mark.slow
def test_the_python_of_the_page_runs_as_it_stands(model_folder, capsys):
    code = next(block for block in blocks(PAGE.read_text()) if "OpenAI(" in block)
    code = re.sub(r"^    ", "", code, flags=re.M)
    with serving(model_folder) as server:
        exec(compile(code.replace("http://127.0.0.1:8000", server.url), "serving.md", "exec"), {})
    assert capsys.readouterr().out


def test_the_page_names_only_keys_that_there_are():
    text = PAGE.read_text()
    keys = set(re.findall(r"`((?:max|drain|timeout)_\w+)`", text)) - {"max_tokens", "max_completion_tokens"}
    listed = help_text(ServeSettings, "usage")
    assert keys and not [key for key in keys if f"  {key} " not in listed]
