"""Foreign text on terminals and in logs."""

import json
import logging
import sys

import pytest

from runtime.files import append_jsonl, read_jsonl
from runtime.text import print_error, print_traceback, printable
from train import command

HOSTILE = "\x1b]0;title\x07\x1b[2Ja\rb\x9b1mc\x7f\u202ed\ud800"
SHOWN = r"\x1b]0;title\x07\x1b[2Ja\x0db\x9b1mc\x7f\u202ed\ud800"


def test_control_characters_are_shown_as_escapes():
    assert printable(HOSTILE) == SHOWN
    assert printable("\U000e0041\u2028") == r"\U000e0041\u2028"


def test_text_without_control_characters_stays_as_it_is():
    text = "tab\tline\nblock 中文 é 🙂 👨\u200d👩 \u00a0 \\x1b"
    assert printable(text) == text


@pytest.mark.parametrize("character", [chr(n) for n in (*range(32), *range(0x7F, 0xA0))])
def test_no_c0_or_c1_character_but_tab_and_line_feed_is_left(character):
    assert (printable(character) == character) == (character in "\t\n")


def test_rows_are_logged_without_control_characters_and_read_as_they_were(tmp_path):
    rows = [{"text": HOSTILE + "\n\t é 🙂 \U000e0041", HOSTILE: 1}]
    append_jsonl(tmp_path / "log.jsonl", rows)
    raw = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert raw.isprintable() or raw == printable(raw)
    assert list(read_jsonl(tmp_path / "log.jsonl")) == [json.loads(json.dumps(row)) for row in rows]


def test_errors_warnings_and_tracebacks_are_shown_with_escapes(capsys):
    print_error(HOSTILE)
    handler = command._WarningLine(logging.WARNING)
    handler.emit(logging.makeLogRecord({"msg": HOSTILE}))
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError:
        print_traceback(*sys.exc_info())
    first, second, *trace = capsys.readouterr().err.splitlines()
    assert (first, second) == (f"error: {SHOWN}", f"warning: {SHOWN}")
    assert trace[0].startswith("Traceback") and trace[-1] == f"RuntimeError: {SHOWN}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:pa:ss@host:8000/v1?x=1#a@b now", "at https://me:***@host:8000/v1?x=1#a@b now"),
        ("redis://:secret@h, ssh://git@host", "redis://:***@h, ssh://git@host"),
        ("http://host:80/a@b user:pass@host", "http://host:80/a@b user:pass@host"),
    ],
)
def test_passwords_in_urls_are_masked(text, shown):
    assert printable(text) == shown
