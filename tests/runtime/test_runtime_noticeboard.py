"""Who may read and write what the launchers of a job tell each other."""

import os
import socket
import stat
import threading
import time
from datetime import timedelta
from multiprocessing import AuthenticationError

import pytest

from runtime.job_key import KEY_VARIABLE, JobKey
from runtime.noticeboard import LocalNoticeboard, RemoteNoticeboard, listen


@pytest.fixture
def board():
    """(node 0's, its address); the key is b"key"."""
    own, listener = LocalNoticeboard(), listen("127.0.0.1", 0)
    own.serve(listener, b"key")
    own.put("claim/0", "itself here 1")
    yield own, listener.getsockname()
    listener.close()


def test_who_holds_the_key_reads_and_writes(board):
    own, address = board
    other = RemoteNoticeboard(address, b"key", 5.0)
    assert other.get("claim/0") == "itself here 1" and other.get("claim/1") is None
    other.put("claim/1", "ünï\ncode")
    assert own.get("claim/1") == "ünï\ncode"
    assert other.claim("claim/1", "late") == "ünï\ncode" and own.claim("claim/2", "first") == "first"
    assert other.claim("claim/2", "late") == "first"


def test_another_key_reads_and_writes_nothing(board):
    own, address = board
    for key in (b"", b"kez", b"key "):
        with pytest.raises(AuthenticationError):
            RemoteNoticeboard(address, key, 5.0)
    assert own._notes == {"claim/0": "itself here 1"}


@pytest.mark.slow
def test_a_store_of_torchs_without_the_key_reads_and_writes_nothing(board):
    """What could be read, and changed, when this was a TCPStore."""
    import torch.distributed as dist

    own, (host, port) = board
    with pytest.raises(RuntimeError):
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=1), wait_for_workers=False)
        store.set("claim/0", "stranger")
        store.get("claim/0")
    assert own._notes == {"claim/0": "itself here 1"}


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x04abcd" * 3, b"\x7f\xff\xff\xff" + b"x" * 99]
)
def test_strangers_and_the_silent_disturb_nobody(board, sent):
    _, address = board
    with socket.create_connection(address) as stranger:
        stranger.sendall(sent)
        assert RemoteNoticeboard(address, b"key", 5.0).get("claim/0") == "itself here 1"


def test_a_request_that_is_none_ends_its_connection_alone(board):
    _, address = board
    other = RemoteNoticeboard(address, b"key", 5.0)
    with pytest.raises((EOFError, OSError)):
        other._ask("__class__", "x")
    assert RemoteNoticeboard(address, b"key", 5.0).get("claim/0") == "itself here 1"


def test_an_answer_that_does_not_come_is_an_error_in_time_and_for_good(board):
    own, address = board
    other = RemoteNoticeboard(address, b"key", 0.2)
    own._lock.acquire()  # as a node 0 that freezes
    started = time.monotonic()
    with pytest.raises(BlockingIOError):
        other.put("a", "b")
    assert time.monotonic() - started < 2.0
    own._lock.release()
    with pytest.raises(OSError):
        other.get("claim/0")


def test_what_is_no_noticeboard_is_an_error():
    with listen("127.0.0.1", 0) as listener:

        def greet():
            with listener.accept()[0] as found:
                found.sendall(b"\x00\x00\x00\x05hello")
                found.recv(10)

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises((OSError, AuthenticationError)):
            RemoteNoticeboard(listener.getsockname(), b"key", 5.0)


def test_a_host_of_this_machine_is_all_that_is_listened_on():
    with listen("127.0.0.1", 0) as here, listen("192.0.2.7", 0) as elsewhere:  # documentation's address: no machine's
        assert here.getsockname()[0] == "127.0.0.1" and elsewhere.getsockname()[0] == "0.0.0.0"


def test_node_0s_key_is_a_file_of_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    first, other = JobKey(tmp_path / "run"), JobKey(tmp_path / "run")
    assert other.find() is None
    old_mask = os.umask(0)
    try:
        key = first.make()
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(first.file.stat().st_mode) == 0o600 and len(key) == 64 and other.find() == key
    again = JobKey(tmp_path / "run")
    assert again.make() != key
    first.remove()
    assert other.find() == again.find()
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_given_is_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    key = JobKey(tmp_path / "run")
    assert key.make() == key.find() == "secret"
    key.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_stays(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    (tmp_path / "config.yaml").touch()
    key = JobKey(tmp_path)
    key.make()
    key.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_many_at_once_claim_one_note(board):
    own, address = board
    found = []

    def claim(i):
        found.append(RemoteNoticeboard(address, b"key", 5.0).claim("one", str(i)))

    threads = [threading.Thread(target=claim, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert len(found) == 16 and set(found) == {own.get("one")}
