"""What crosses between a program and its tests: plain data as it was, and nothing else whatever bytes arrive."""

import datetime
import os
from collections import Counter, OrderedDict, deque, namedtuple
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.code.inside import plain
from reward.code.inside.plain import BadFrame, FrameTooLong, NotPlain, dumps, frames, loads, read_frame, write_frame

hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=20)
    | st.binary(max_size=20)
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
values = st.recursive(
    hashable | st.binary(max_size=9).map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.sets(hashable, max_size=3)
        | st.lists(inner, max_size=3).map(deque)
    ),
    max_leaves=20,
)
PLAIN = {type(None), bool, int, float, str, bytes, bytearray, complex, list, tuple, dict, set, frozenset, deque, range}
LIBRARY = {Decimal, Fraction, datetime.datetime, datetime.date, datetime.time, datetime.timedelta}


@settings(max_examples=30, deadline=None)
@given(values)
def test_round_trip(value):
    back = loads(dumps(value))
    assert back == value and type(back) is type(value)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60), values, st.integers(0, 200))
def test_any_bytes_are_plain_or_refused(noise, value, where):
    spoiled = dumps(value)
    for data in (noise, spoiled[:where] + noise, spoiled[:where] + noise[:1] + spoiled[where + 1 :]):
        with suppress(BadFrame):
            check(loads(data))


def check(value):
    assert type(value) in PLAIN | LIBRARY | {type(iter([]))}, type(value)
    if isinstance(value, list | tuple | set | frozenset | deque):
        for item in value:
            check(item)
    if isinstance(value, dict):
        for key, item in value.items():
            check(key)
            check(item)


def test_subclasses_lose_their_class():
    class Liar(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    class Text(str):
        def encode(self, *args):
            return b"something else"

    point = namedtuple("point", "x y")
    for value, back in [
        (Liar(3), 3),
        (Text("a"), "a"),
        (OrderedDict(a=1), {"a": 1}),
        (Counter("aa"), {"a": 2}),
        (point(1, 2), (1, 2)),
    ]:
        assert type(loads(dumps(value))) is type(back) and loads(dumps(value)) == back


def test_numpy():
    np = pytest.importorskip("numpy")
    row = loads(dumps([np.float64(0.5), np.int64(3), np.bool_(True), np.array([[1, 2]])]))
    assert row == [0.5, 3, True, [[1, 2]]] and [type(item) for item in row] == [float, int, bool, list]


def test_iterators_cross_as_iterators():
    back = loads(dumps(iter((1, 2))))
    assert next(back) == 1 and list(loads(dumps(back))) == [2]


@pytest.mark.parametrize("value", [object(), len, lambda: 1, type, [object()], {1: object()}, ValueError("x")])
def test_all_else_does_not_cross(value):
    with pytest.raises(NotPlain):
        dumps(value)


def library(name, plain_value):
    return b"L" + dumps([name, plain_value])[1:]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"?",
        b"i",
        b"i\xff\xff\xff\xff",
        b"l\x02\0\0\0N",
        b"NN",
        b"s\1\0\0\0\xff",
        b"S\1\0\0\0l\0\0\0\0",
        library("os.system", "true"),
        library("fractions.Fraction", (1, 0)),
        library("datetime.date", 3),
    ],
)
def test_bad_bytes(data):
    with pytest.raises(BadFrame):
        loads(data)


def test_depth_is_refused_not_fatal():
    with pytest.raises(RecursionError):
        loads(b"l\x01\0\0\0" * 100_000 + b"N")
    value = []
    value.append(value)
    with pytest.raises(RecursionError):
        dumps(value)


def test_frames():
    reader, writer = os.pipe()
    write_frame(writer, {"a": 1})
    assert read_frame(reader) == {"a": 1}
    with pytest.raises(FrameTooLong):
        write_frame(writer, "x" * 100, limit=50)
    os.write(writer, (plain.MAX_REPLY_BYTES + 1).to_bytes(4, "little"))
    with pytest.raises(FrameTooLong):
        read_frame(reader)
    os.write(writer, b"\x05\0\0\0ab")
    os.close(writer)
    with pytest.raises(EOFError):
        read_frame(reader)
    os.close(reader)
    one = dumps(1)
    good = len(one).to_bytes(4, "little") + one
    assert frames(good + good + b"\x01\0\0\0?" + good) == [1, 1]
    assert frames(good + good[:-1]) == [1] and frames(b"") == []
