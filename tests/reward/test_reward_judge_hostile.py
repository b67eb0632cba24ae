"""Judges that stall, flood, lie or redirect: each costs its time limit at most, ends no run and gets no key."""

import gzip
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from judge_server import serving

from configs.schema import JudgeConfig
from reward.judge.api import MAX_REPLY_BYTES, ApiJudge
from reward.judge.build import build_judge
from reward.judge.judge import Question

GOOD = json.dumps({"choices": [{"message": {"content": "fine"}}]}).encode()
SECONDS = 0.3


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("reward.judge.api.PAUSE_SECONDS", 0.01)


@contextmanager
def answering(answer):
    """A server that gives each connection, its request read, to `answer`; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with suppress(OSError):
                while True:
                    threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

        def handle(connection):
            with connection, suppress(OSError):
                connection.recv(1 << 16)
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def judge(url, **settings):
    return ApiJudge(JudgeConfig(**{"api": url, "model": "j", "timeout_seconds": SECONDS, "attempts": 1, **settings}))


def dripped(start, drop=b"x"):
    def answer(connection):
        connection.sendall(start)
        while True:
            connection.sendall(drop)
            time.sleep(0.02)

    return answer


def reply(body, status="200 OK", headers=""):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def sent(data):
    return lambda connection: connection.sendall(data)


STALLS = {
    "silence": lambda connection: time.sleep(30),
    "headers dripped": dripped(b"HTTP/1.1 200 OK\r\nX-A: "),
    "headers without end": dripped(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "body dripped": dripped(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"),
    "chunks dripped": dripped(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "body of a 401 dripped": dripped(b"HTTP/1.1 401 No\r\nContent-Length: 1000000\r\n\r\n"),
    "body of a 500 dripped": dripped(b"HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n"),
    "100 Continue without end": dripped(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "status line dripped": dripped(b"HTTP/1.1 ", b"2"),
    "body of a redirect dripped": dripped(b"HTTP/1.1 307 Go\r\nLocation: /x\r\nContent-Length: 1000000\r\n\r\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STALLS)
def test_one_deadline_holds_for_the_whole_exchange(name):
    with answering(STALLS[name]) as url:
        started = time.monotonic()
        assert judge(url)([Question("q"), Question("r")]) == [None, None]
        assert time.monotonic() - started < SECONDS + 2.0


@pytest.mark.slow
def test_each_try_has_a_deadline_of_its_own_and_the_check_has_one():
    with answering(STALLS["headers dripped"]) as url:
        started = time.monotonic()
        assert judge(url, attempts=3)([Question("q")]) == [None]
        assert 3 * SECONDS < time.monotonic() - started < 3 * SECONDS + 2.0
        with pytest.raises(ValueError, match="nothing answers at http://127.0.0.1.*no answer in 0.3 seconds"):
            judge(url).check()


BAD_ANSWERS = {
    "100,000 brackets": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "a number of a million digits": b"9" * 1_000_000,
    "no JSON": b"<html>",
    "no UTF-8": b'{"choices": "\xff"}',
    "nothing": b"",
    "null": b"null",
    "a list": b"[1]",
    "no choices": b'{"choices": []}',
    "choices of another kind": b'{"choices": {"0": 1}}',
    "a message of text": b'{"choices": [{"message": "fine"}]}',
    "content of parts": b'{"choices": [{"message": {"content": [{"text": "fine"}]}}]}',
    "more than the bound": b" " * MAX_REPLY_BYTES + GOOD,
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_that_cannot_be_read_is_none(name):
    with answering(sent(reply(BAD_ANSWERS[name]))) as url:
        assert judge(url, timeout_seconds=20.0)([Question("q")]) == [None]


PROTOCOL = {
    "no status": b"hello\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a status of text": b"HTTP/1.1 abc OK\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n" + GOOD,
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + GOOD,
    "an odd chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a body cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + GOOD,
    "a header of NUL": b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n" + GOOD,
    "an empty redirect": reply(b"", "307 Go"),
    "a redirect to itself": reply(b"", "307 Go", "Location: /v1/chat/completions\r\n"),
    "a redirect to nothing": reply(b"", "307 Go", "Location: http://\r\n"),
    "a redirect to a file": reply(b"", "307 Go", "Location: file:///etc/passwd\r\n"),
    "a redirect to an odd port": reply(b"", "307 Go", "Location: http://127.0.0.1:99999/\r\n"),
    "packed without being asked": reply(gzip.compress(b"0" * 100_000_000), headers="Content-Encoding: gzip\r\n"),
    "waiting for ever": reply(b"", "503 Busy", "Retry-After: inf\r\n"),
    "waiting for no number": reply(b"", "503 Busy", "Retry-After: nan\r\n"),
}


@pytest.mark.parametrize("name", PROTOCOL)
def test_a_broken_exchange_is_none(name):
    with answering(sent(PROTOCOL[name])) as url:
        assert judge(url, timeout_seconds=5.0, attempts=2)([Question("q")]) == [None]


def test_text_that_no_file_can_hold_is_mended():
    with answering(sent(reply(b'{"choices": [{"message": {"content": "a\\ud800"}}]}'))) as url:
        assert judge(url)([Question("q \ud800")]) == ["a?"]


# Secrets


def test_the_key_never_follows_a_redirect_to_another_origin(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-123")
    with serving() as other:
        target = other.url + "/chat/completions"
        with answering(sent(reply(b"", "307 Go", f"Location: {target}\r\n"))) as url:
            asked = judge(url, api_key_variable="JUDGE_KEY", timeout_seconds=5.0)
            assert asked([Question("q")]) == ["\\boxed{1}"]
    assert [request["key"] for request in other.requests] == [None]


def test_the_key_follows_a_redirect_at_home(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-123")
    with serving() as server:
        server.moved = "/v2/chat/completions"
        asked = judge(server.url, api_key_variable="JUDGE_KEY", timeout_seconds=5.0)
        assert asked([Question("q")]) == ["\\boxed{1}"]
    assert [request["key"] for request in server.requests] == ["Bearer sk-secret-123"]
    assert [request["path"] for request in server.requests] == ["/v2/chat/completions"]


def test_a_password_in_the_url_is_sent_but_not_shown():
    with serving() as server:
        url = server.url.replace("//", "//user:pa55word@")
        assert judge(url, timeout_seconds=5.0)([Question("q")]) == ["\\boxed{1}"]
        assert server.requests[0]["key"] == "Basic dXNlcjpwYTU1d29yZA=="
        server.reply = lambda request: (401, "no")
        with pytest.raises(RuntimeError, match="refuses with 401") as refused:
            judge(url, timeout_seconds=5.0)([Question("q")])
    messages = [str(refused.value)]
    for api in ("http://user:pa55word@127.0.0.1:9/v1", "ftp://user:pa55word@host/v1", "http://user:pa55word@[bad/v1"):
        with pytest.raises(ValueError) as error:
            build_judge(api=api, model="j")
        messages.append(str(error.value))
    assert not any("pa55word" in message or "user" in message for message in messages), messages


# Refusals


def test_a_question_that_is_refused_is_left_out_unless_all_are():
    with serving() as server:
        server.reply = lambda request: (400, "too long") if "long" in str(request["messages"]) else "fine"
        asked = judge(server.url, timeout_seconds=5.0)
        assert asked([Question("a"), Question("long"), Question("b")]) == ["fine", None, "fine"]
        with pytest.raises(RuntimeError, match="refuses with 400.*too long"):
            asked([Question("long"), Question("long", 1)])


def test_a_refusal_is_shown_without_control_characters():
    with serving() as server:
        server.reply = lambda request: (401, "\x9b31m wrong \u202e key")
        with pytest.raises(RuntimeError, match="wrong") as error:
            judge(server.url, timeout_seconds=5.0)([Question("q")])
    assert all(character.isprintable() for character in str(error.value))
