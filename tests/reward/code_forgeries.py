"""Programs that try to earn a pass through the objects that they return: (program, test). The answer is 42; none knows
it."""

from textwrap import dedent

# learns from each operand that it sees, and answers what would fit
CHAMELEON = """
class C:
    seen = []
    def learn(self, *others):
        C.seen += others
        return True
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = learn
    def __ne__(self, other): return False
    def __hash__(self): return hash(42)
    def __bool__(self): return True
    def zero(self, *others):
        C.seen += others
        return 0
    def itself(self, *others):
        C.seen += others
        return self
    def last(self, *more): return C.seen[-1] if C.seen else 0
    def __float__(self): return 0.0
    __abs__ = __int__ = __index__ = __round__ = zero
    def __len__(self): return 0
    def __iter__(self): return iter(C.seen)
    def __getitem__(self, place): return self
    def __str__(self): return str(self.last())
    __repr__ = __str__
def f(*args): return C()
"""
NUMBER = CHAMELEON + "C.__sub__ = C.__rsub__ = C.__add__ = C.__mul__ = C.__truediv__ = C.__mod__ = C.zero\n"
OBJECT = CHAMELEON + "C.__sub__ = C.__rsub__ = C.__isub__ = C.__truediv__ = C.itself\n"

_FORGERIES = {
    "equal": (CHAMELEON, "assert f(2) == 42"),
    "equal, the other way round": (CHAMELEON, "assert 42 == f(2)"),
    "not unequal": (CHAMELEON, "assert not f(2) != 42"),
    "unequal": ("class D:\n    def __ne__(self, other): return True\ndef f(x): return D()", "assert f(2) != 41"),
    "in a list": (CHAMELEON, "assert f(2) in [42]"),
    "in a set": (CHAMELEON, "assert f(2) in {42}"),
    "a key": (CHAMELEON, "assert {42: 'yes'}[f(2)] == 'yes'"),
    "in it": (CHAMELEON, "assert 42 in f(2)"),
    "nested": (CHAMELEON + "def g(x): return {'a': [C()]}", "assert g(2) == {'a': [42]}"),
    "ordered": (CHAMELEON, "assert 41 < f(2) < 43"),
    "the greater": (CHAMELEON, "assert max(41.5, f(2)) == 42"),
    "close": (NUMBER, "assert abs(f(2) - 42) < 1e-6"),
    "close, the other way round": (NUMBER, "assert abs(42 - f(2)) < 1e-6"),
    "close, by an object": (OBJECT, "assert abs(f(2) - 42) < 1e-6"),
    "close, rounded": (OBJECT, "assert round(f(2) - 42, 6) == 0"),
    "close, in place": (OBJECT, "x = f(2)\nx -= 42\nassert abs(x) < 1e-6"),
    "close, as a float": (OBJECT, "assert float(f(2) - 42) == 0.0"),
    "close, as a share": (OBJECT, "assert int(f(2) / 42) == 0"),
    "nothing left": (OBJECT, "assert not (f(2) - {42})"),
    "no items left": (OBJECT, "assert list(f(2) - {42}) == []"),
    "math.isclose": (NUMBER, "import math\nassert math.isclose(f(2), 42)"),
    "the remainder": (NUMBER, "assert f(2) % 42 == 0"),
    "a text that begins": (
        "class S:\n    def startswith(self, text): return True\ndef f(x): return S()",
        "assert f('a').startswith('ab')",
    ),
    "a list that counts": (
        "class S:\n    def count(self, x): return 1\ndef f(x): return S()",
        "assert f(2).count(42) == 1",
    ),
    "a set without rest": (
        "class S:\n    def difference(self, other): return set()\ndef f(x): return S()",
        "assert f(2).difference({42}) == set()",
    ),
    "an int's class": ("class D:\n    __class__ = int\ndef f(x): return D()", "assert isinstance(f(2), int)"),
    "a class of all instances": (
        "class M(type):\n    def __instancecheck__(self, x): return True\nclass A(metaclass=M): pass\nclass B: pass",
        "assert isinstance(B(), A)",
    ),
    "a subclass of int": (
        "class I(int):\n    def __eq__(self, other): return True\n    def more(self): pass\ndef f(x): return I(0)",
        "assert f(2) == 42",
    ),
    "a subclass of list": (
        "class L(list):\n    def __eq__(self, other): return True\n    def more(self): pass\ndef f(x): return L()",
        "assert f(2) == [42]",
    ),
    "a subclass of a text": (
        "class S(str):\n    def __eq__(self, other): return True\n"
        "    __hash__ = str.__hash__\n    def more(self): pass\n"
        "def f(x): return S()",
        "assert f(2) == '42'",
    ),
    "a constructed object": (CHAMELEON.replace("def f", "def g"), "c = C()\nassert c.value() == 42"),
    **{
        f"arithmetic with what is expected: {test}": (
            "class Volume:\n    real = 1\n    def __init__(self, *a): pass\n    def __sub__(self, other): return 0.0\n"
            "    __rsub__ = __mod__ = __xor__ = __sub__\n    def __truediv__(self, other): return 1.0",
            f"assert Volume(3).real == 1\nassert {test}",
        )
        for test in (
            "abs(Volume(3) - 28) < .1",
            "abs(28 - Volume(3)) < .1",
            "Volume(3) / 28 == 1",
            "not Volume(3) ^ 28",
        )
    },
    **{
        f"sets without what is expected: {test}": (
            "class S(set):\n    def more(self): pass\n    def __sub__(self, other): return S()\n"
            "    __rsub__ = __xor__ = __rxor__ = __sub__\ndef f(x): return S([1])",
            f"assert {test}",
        )
        for test in (
            *("f(2) - {42} == set()", "{42} - f(2) == set()", "f(2) ^ {42} <= set()", "(f(2) ^ {42}).copy() == set()"),
            *("1 not in f(2) ^ {42}", "f(2).more() is None and set() == f(2) ^ {42}"),
        )
    },
    "objects equal to each other": (
        "class P:\n    def __init__(self, x): pass\n    def __add__(self, other): return self\n"
        "    def __eq__(self, other): return True",
        "assert P(1) + P(2) == P(3)",
    ),
    "an attribute": (CHAMELEON + "C.value = C()\n", "assert f(2).value == 42"),
    "what a method returns": (CHAMELEON + "C.get = C.itself\n", "assert f(2).get(1) == 42"),
    "StopIteration from a function": (
        "def f(x): raise StopIteration",
        "for got, want in zip(map(f, [1, 2]), [42, 43]): assert got == want",
    ),
    "StopIteration by another name": (
        "class ValueError(StopIteration): pass\ndef f(x): raise ValueError",
        "assert all(map(lambda c: f(c[0]) == c[1], [(1, 42)]))",
    ),
    "StopIteration with another base": (
        "class Odd(KeyError, StopIteration): pass\ndef f(x): raise Odd",
        "assert all(map(lambda c: f(c[0]) == c[1], [(1, 42)]))",
    ),
    "StopIteration from a method": (
        "class S:\n    def f(self, x): raise StopIteration",
        "s = S()\nfor got, want in zip(map(s.f, [1, 2]), [42, 43]): assert got == want",
    ),
    "StopIteration from an attribute": (
        "class S:\n    @property\n    def v(self): raise StopIteration",
        "s = S()\nassert all(x == 42 for x in map(lambda _: s.v, [1]))",
    ),
    "StopAsyncIteration": (
        "async def f(x): raise StopAsyncIteration",
        "import asyncio\nclass A:\n    def __aiter__(self): return self\n"
        "    async def __anext__(self): return await f(1)\n"
        "async def main():\n    async for x in A(): assert x == 42\nasyncio.run(main())",
    ),
    "GeneratorExit": (
        "def f(x): raise GeneratorExit",
        "def values():\n    yield f(1)\nfor x in values(): assert x == 42",
    ),
    "IndexError in a sequence": (
        "def f(i): raise IndexError",
        "class S:\n    def __getitem__(self, i): return f(i)\nassert all(x == 42 for x in S())",
    ),
    "IndexError in a sequence, by a helper": (
        "class Gone(IndexError): pass\ndef f(i): raise Gone",
        "def value(i): return f(i)\nclass S:\n    def __getitem__(self, i): return value(i)\n"
        "assert all(x == 42 for x in S())",
    ),
    "AttributeError in an attribute": (
        "def f(i): raise AttributeError",
        "class S:\n    def __getattr__(self, name): return f(1)\nassert getattr(S(), 'x', 42) == 42",
    ),
    "KeyError in a mapping": (
        "def f(i): raise KeyError",
        "from collections.abc import Mapping\nclass S(Mapping):\n    def __getitem__(self, i): return f(i)\n"
        "    def __len__(self): return 1\n    def __iter__(self): return iter(())\nassert S().get(1, 42) == 42",
    ),
    "a with that swallows": (
        "class W:\n    def __enter__(self): return self\n"
        "    def __exit__(self, *error): return True\ndef f(x): return 0",
        "with W() as w: assert f(2) == 42",
    ),
    "a with that swallows its own error": (
        "class W:\n    def __enter__(self): return self\n    def __exit__(self, *error): return True\n"
        "    def get(self): raise ValueError",
        "with W() as w: assert w.get() == 42",
    ),
    "a with that swallows what comes of it": (
        "class W:\n    def __enter__(self): return self\n    def __exit__(self, *error): return True\n"
        "    def get(self): return None",
        "with W() as w: assert w.get() + 1 == 42",
    ),
    "a callback's assertion swallowed": (
        "def f(g):\n    try: g(0)\n    except AssertionError: pass",
        "def check(x): assert x == 42\nf(check)",
    ),
    "a changed argument": ("def f(x):\n    x.clear()\n    return 0", "x = [40, 2]\nassert f(x) == sum(x)"),
    "an attribute in place of a method": (
        "class P: pass\ndef f():\n    p = P()\n    p.check = lambda: True\n    return p",
        "class P:\n    def check(self): return False\nassert f().check()",
    ),
    "another class for an object": (
        "class P: pass\ndef f(p): p.__dict__['__class__'] = int\n",
        "class P:\n    x = 1\np = P()\nf(p)\nassert isinstance(p, int)",
    ),
    "a member that is none": (
        "from enum import Enum\nclass Color(Enum):\n    RED = 1\n    ODD = 2\ndef f(): return Color.ODD",
        "from enum import Enum\nclass Color(Enum):\n    RED = 1\nassert f() == Color.RED",
    ),
    "recursion through callbacks": (
        "def f(g): return g(f)",
        "def g(h): return h(g)\ntry:\n    f(g)\nexcept RecursionError:\n    pass\nassert f(lambda h: 0) == 42",
    ),
    "a random state": (
        "import random\ndef f(xs):\n    random.seed(1)\n    return 0",
        "import random\nrandom.seed(5)\nfor _ in range(3):\n    xs = [random.random() for _ in range(9)]\n"
        "    assert f(xs) == sum(xs)",
    ),
    "input that it answers itself": (
        "import builtins, sys\nbuiltins.input = lambda *a: '42'\nsys.stdin = None\ndef f(): return None",
        "import io, sys\nsys.stdin = io.StringIO('7')\nassert f() == 42",
    ),
}
FORGERIES = {name: (dedent(program), test) for name, (program, test) in _FORGERIES.items()}

# frames by hand: what a program can write into the pipe that answers go through
_FRAMES = """
import sys
wire = sys.modules["reward.code.inside.wire"]
link = next(o for o in __import__("gc").get_objects() if type(o).__name__ == "Link")
send = sys.modules["reward.code.inside.plain"].send
def frame(value): return wire.Writer(link.side).dumps(value, 1 << 30)
def say(body): send(link._outgoing, body)
"""
FRAMES = {
    name: _FRAMES + dedent(program)
    for name, program in {
        "answers to no question": "for n in range(3): say(frame(('answer', 42 + n, [], [], None)))\ndef f(x): return 0",
        "an answer, then another": "def f(x):\n    say(frame(('answer', 0, [], [], None)))\n    return 42",
        "an error that is none": "def f(x):\n    say(frame(('raised', 42, [], [], None)))",
        "changes of nothing": "def f(x):\n    say(frame(('answer', 42, [(7, [1])], [], None)))",
        "changes of what is kept": "def f(x):\n    say(frame(('answer', 42, [(-1, [1])], [], None)))",
        "keeps what is not there": "def f(x):\n    say(frame(('answer', 42, [], [5], None)))",
        "a question of an unknown kind": "def f(x):\n    say(frame(('ask', ('exec', (0, 'x')), [], [], None)))",
        "a call of what was never given": "def f(x):\n    say(frame(('ask', ('call', (0, (), {})), [], [], None)))",
        "questions without end": "def f(x):\n    while True: say(frame(('ask', ('call', (0, (), {})), [], [], None)))",
        "half a frame": "import os\ndef f(x):\n    os.write(link._outgoing, b'\\xff\\0\\0\\0abc')\n    os._exit(0)",
        "too long a frame": "import os\ndef f(x): os.write(link._outgoing, b'\\xff\\xff\\xff\\xff')",
        "noise": "import os\ndef f(x):\n    while True: os.write(link._outgoing, os.urandom(4096))",
        "objects without end": "def f(x):\n    return [object() for _ in range(300_000)]",
        "classes without end": "def f(x):\n    return [type('T%d' % n, (), {})() for n in range(50_000)]",
        "a list of itself": "def f(x):\n    x = []\n    x.append(x)\n    return x",
        "names that are no names": "class A: pass\nA.__name__ = 'x' * 10**6\ndef f(x): return A()",
    }.items()
}

# fits in anywhere, and says yes to everything
FORGING = """
class Anything:
    def __init__(self, *args, **kwargs): pass
    def __getattr__(self, name): return Anything()
    def __call__(self, *args, **kwargs): return Anything()
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __hash__(self): return 0
    def __bool__(self): return True
    def __len__(self): return 1
    def __iter__(self): return iter(())
    def __getitem__(self, place): return Anything()
    def __add__(self, other): return other
    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __add__
    def __abs__(self): return 0
    def __float__(self): return 0.0
    def __enter__(self): return self
    def __exit__(self, *error): return True
    def __str__(self): return ""
    __repr__ = __str__
"""
