"""What crosses between a program and its tests: plain data as it was, and nothing else whatever bytes arrive."""

import datetime
import io
import os
import time
from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.code.inside import plain
from reward.code.inside.plain import dumps, loads, read_frame, write_frame
from reward.code.inside.wire import BadFrame, FrameTooLong, NotPlain

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


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(values)
def test_round_trip(value):
    back = loads(dumps(value))
    assert back == value and type(back) is type(value)


@pytest.mark.slow
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

        def __str__(self):
            return "something else"

    class Real(float):
        def __float__(self):
            return 0.5

    class Items(list):
        def __iter__(self):
            return iter(())

    class Words(dict):
        def items(self):
            return ()

    class Raw(bytes):
        def __getitem__(self, place):
            return b"x"

    point = namedtuple("point", "x y")
    for value, back in [
        (Liar(3), 3),
        (Text("a"), "a"),
        (Real(1.5), 1.5),
        (Items([1]), [1]),
        (Words(a=1), {"a": 1}),
        (Raw(b"a"), b"a"),
        (point(1, 2), (1, 2)),
    ]:
        assert type(loads(dumps(value))) is type(back) and loads(dumps(value)) == back


@pytest.mark.parametrize(
    "value",
    [
        OrderedDict(b=1, a=2),
        Counter("aab"),
        defaultdict(list, a=[1]),
        deque([1, 2], 2),
        array("i", [1, 2]),
        Path("a/b"),
        PurePosixPath("a"),
        UUID(int=5),
        datetime.timezone(datetime.timedelta(hours=2)),
        datetime.datetime(2000, 1, 2, tzinfo=datetime.UTC),
        SimpleNamespace(a=1),
        slice(1, None, 2),
        ...,
        NotImplemented,
        int,
        type,
        ValueError,
        {1: 2}.keys(),
        {1: 2}.items(),
        memoryview(b"abc"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_the_library(value):
    back = loads(dumps(value))
    assert back == value and type(back) is type(value) and repr(back) == repr(value) or type(back) is memoryview


def test_what_is_in_views_and_streams():
    assert list(loads(dumps({1: 2}.values()))) == [2]
    stream = io.StringIO("abc")
    stream.read(1)
    assert loads(dumps(stream)).read() == "bc"
    assert loads(dumps(Counter("aa")))["b"] == 0
    assert loads(dumps(defaultdict(list)))["a"] == []
    back = loads(dumps(deque([1, 2], 2)))
    back.append(3)
    assert list(back) == [2, 3]


def test_numpy():
    np = pytest.importorskip("numpy")
    row = loads(dumps([np.float64(0.5), np.int64(3), np.bool_(True), np.array([[1, 2]], dtype="i2"), np.zeros((0, 2))]))
    assert row[:3] == [0.5, 3, True] and [type(item) for item in row[:3]] == [np.float64, np.int64, np.bool_]
    assert (row[3].tolist(), row[3].dtype, row[4].shape) == ([[1, 2]], np.dtype("i2"), (0, 2))
    for value in (
        np.array([1 + 2j, 0]),
        np.array(["a", "bc"]),
        np.array([None, "x"], object),
        np.float32(3),
        np.array(2),
    ):
        back = loads(dumps(value))
        assert type(back) is type(value) and back.dtype == value.dtype and (back == value).all()
    for name in ("numpy:ndarray;<f8;99999,99999", "numpy:ndarray;V8;1", "numpy:ndarray;<U99999999;2"):
        with pytest.raises(BadFrame):
            loads(b"O" + dumps(name)[1:] + b"\0\0\0\0")


def test_what_occurs_twice_is_one():
    row = [1]
    value = {"a": row, "b": [row, {2}], "c": row}
    value["self"] = value
    back = loads(dumps(value))
    assert back["a"] is back["c"] is back["b"][0] and back["self"] is back and back["a"] == [1]


@pytest.mark.parametrize("value", [object(), len, lambda: 1, [object()], {1: object()}, ValueError("x"), iter(())])
def test_all_else_does_not_cross(value):
    with pytest.raises(NotPlain):
        dumps(value)


def library(*parts):
    return b"L" + dumps(list(parts))[1:]


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
        library("os:system", "true"),
        library("os.system", "true"),
        library("fractions:Fraction", 1, 0),
        library("fractions:Fraction", "1e999999999"),
        library("datetime:date", 3),
        library("type", "print"),
        library("numpy", "O", 1),
        b"O" + dumps("os:system")[1:] + b"\0\0\0\0",
        b"H\0\0\0\0",
        b"R\0\0\0\0",
        b"A\0\0\0\0",
    ],
)
def test_bad_bytes(data):
    with pytest.raises(BadFrame):
        loads(data)


@pytest.mark.slow
def test_depth():
    value = []
    for _ in range(5000):
        value = [value]
    back = loads(dumps(value))
    for _ in range(5000):
        (back,) = back
    assert back == []
    with pytest.raises(BadFrame):
        loads(b"l\x01\0\0\0" * 100_000 + b"N")
    for _ in range(100_000):
        value = [value]
    with pytest.raises(NotPlain):
        dumps(value)


@pytest.mark.slow
def test_frames_that_would_take_long_or_much_are_refused():
    """Keys that all collide take quadratic time, small frames of heavy objects much memory, tuples of tuples much
    room."""
    started = time.process_time()
    colliding = [number * (2**61 - 1) for number in range(1, 100_001)]
    for tag, data in ((b"S", dumps(colliding)[1:]), (b"d", dumps(colliding)[1:]), (b"Z", dumps(colliding)[1:])):
        with pytest.raises(BadFrame, match="collide"):
            loads(tag + data)
    pairs = dumps([tuple(-1 - bit for bit in map(int, f"{number:012b}")) for number in range(4096)])
    with pytest.raises(BadFrame, match="collide"):
        loads(b"S" + pairs[1:])
    with pytest.raises(BadFrame, match="too many"):
        loads(b"l" + (1 << 20).to_bytes(4, "little") + b"q\0\0\0\0" * (1 << 20))
    value = ()
    for _ in range(60):
        value = (value, value)
    with pytest.raises(FrameTooLong):
        dumps(value, limit=1 << 20)
    assert time.process_time() - started < 5


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
