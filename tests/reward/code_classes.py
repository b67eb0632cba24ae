"""Tasks whose tests use objects: (tests, a right program, a wrong one). The tests are as data sets have them: sequences
of operations on an object, results compared with plain data."""

from textwrap import dedent

_TASKS = {
    "stack": (
        """
        s = Stack()
        s.push(1)
        s.push(2)
        assert s.pop() == 2
        assert s.peek() == 1
        assert len(s) == 1
        assert not s.is_empty()
        """,
        """
        class Stack:
            def __init__(self): self.items = []
            def push(self, x): self.items.append(x)
            def pop(self): return self.items.pop()
            def peek(self): return self.items[-1]
            def is_empty(self): return not self.items
            def __len__(self): return len(self.items)
        """,
        ("self.items.pop()", "self.items.pop(0)"),
    ),
    "a method named like a list's": (
        "assert Solution().reverse(12) == 21",
        "class Solution:\n    def reverse(self, x): return int(str(x)[::-1])",
        ("[::-1]", ""),
    ),
    "least recently used": (
        """
        cache = LRUCache(2)
        cache.put(1, 1)
        cache.put(2, 2)
        assert cache.get(1) == 1
        cache.put(3, 3)
        assert cache.get(2) == -1
        assert cache.get(3) == 3
        """,
        """
        from collections import OrderedDict
        class LRUCache:
            def __init__(self, capacity): self.capacity, self.data = capacity, OrderedDict()
            def get(self, key):
                if key not in self.data: return -1
                self.data.move_to_end(key)
                return self.data[key]
            def put(self, key, value):
                self.data[key] = value
                self.data.move_to_end(key)
                if len(self.data) > self.capacity: self.data.popitem(last=False)
        """,
        ("        self.data.move_to_end(key)\n        return", "        return"),
    ),
    "linked list of the program": (
        """
        head = build([1, 2, 3])
        head = reverse_list(head)
        out = []
        while head is not None:
            out.append(head.val)
            head = head.next
        assert out == [3, 2, 1]
        """,
        """
        class Node:
            def __init__(self, val, next=None): self.val, self.next = val, next
        def build(values):
            head = None
            for value in reversed(values): head = Node(value, head)
            return head
        def reverse_list(head):
            before = None
            while head: head.next, before, head = before, head, head.next
            return before
        """,
        ("return before", "return head"),
    ),
    "linked list of the tests": (
        """
        class ListNode:
            def __init__(self, val=0, next=None):
                self.val = val
                self.next = next
        a = ListNode(1, ListNode(2, ListNode(3)))
        b = reverseList(a)
        assert b.val == 3 and b.next.val == 2 and b.next.next is a and a.next is None
        """,
        """
        class ListNode:
            def __init__(self, val=0, next=None): self.val, self.next = val, next
        def reverseList(head):
            before = None
            while head: head.next, before, head = before, head, head.next
            return before
        """,
        ("return before", "return head"),
    ),
    "tree": (
        """
        t = BST()
        for v in [5, 2, 8, 1, 9]:
            t.insert(v)
        assert t.root.value == 5 and t.root.left.value == 2 and t.root.left.right is None
        assert t.in_order() == [1, 2, 5, 8, 9]
        assert t.height() == 3
        """,
        """
        class Node:
            def __init__(self, value): self.value, self.left, self.right = value, None, None
        class BST:
            def __init__(self): self.root = None
            def insert(self, value):
                if self.root is None: self.root = Node(value); return
                node = self.root
                while True:
                    side = 'left' if value < node.value else 'right'
                    if getattr(node, side) is None: setattr(node, side, Node(value)); return
                    node = getattr(node, side)
            def in_order(self, node='root'):
                if node == 'root': node = self.root
                return [] if node is None else self.in_order(node.left) + [node.value] + self.in_order(node.right)
            def height(self, node='root'):
                if node == 'root': node = self.root
                return 0 if node is None else 1 + max(self.height(node.left), self.height(node.right))
        """,
        ("value < node.value", "value > node.value"),
    ),
    "a closure": (
        "add2 = adder(2)\nassert add2(3) == 5\nassert adder(10)(1) == 11",
        "def adder(n): return lambda m: n + m",
        ("n + m", "n * m"),
    ),
    "a counter with state": (
        "c = make_counter()\nassert [c(), c(), c()] == [1, 2, 3]\nassert make_counter()() == 1",
        "def make_counter():\n    n = 0\n    def c():\n"
        "        nonlocal n\n        n += 1\n        return n\n    return c",
        ("return n\n", "return 1\n"),
    ),
    "properties": (
        """
        c = Circle(2)
        assert abs(c.area - 12.566370614359172) < 1e-9
        c.radius = 3
        assert c.diameter == 6
        try:
            c.radius = -1
            assert False
        except ValueError:
            pass
        """,
        """
        import math
        class Circle:
            def __init__(self, radius): self.radius = radius
            @property
            def radius(self): return self._radius
            @radius.setter
            def radius(self, value):
                if value < 0: raise ValueError(value)
                self._radius = value
            @property
            def area(self): return math.pi * self._radius ** 2
            @property
            def diameter(self): return 2 * self._radius
        """,
        ("2 * self._radius", "3 * self._radius"),
    ),
    "own errors": (
        """
        account = Account(10)
        try:
            account.withdraw(20)
            assert False, "no error"
        except InsufficientFunds as error:
            assert error.needed == 10
            assert str(error) == "10 short"
        assert account.balance == 10
        """,
        """
        class BankError(Exception): pass
        class InsufficientFunds(BankError):
            def __init__(self, needed):
                super().__init__(needed)
                self.needed = needed
            def __str__(self): return f"{self.needed} short"
        class Account:
            def __init__(self, balance): self.balance = balance
            def withdraw(self, amount):
                if amount > self.balance: raise InsufficientFunds(amount - self.balance)
                self.balance -= amount
        """,
        ("raise InsufficientFunds(amount - self.balance)", "raise InsufficientFunds(amount)"),
    ),
    "errors below others": (
        "try:\n    f(3)\n    assert False\nexcept Base as e:\n"
        "    assert type(e).__name__ == 'Special' and e.args == (3,)",
        "class Base(Exception): pass\nclass Special(Base, KeyError): pass\ndef f(x): raise Special(x)",
        ("raise Special(x)", "raise KeyError(x)"),
    ),
    "vectors": (
        """
        v = Vector(1, 2) + Vector(3, 4)
        assert (v.x, v.y) == (4, 6)
        w = v * 2
        assert w.x == 8 and (-w).y == -12
        assert Vector(3, 4).length() == 5.0 and abs(Vector(3, 4)) == 5.0
        assert repr(Vector(1, 2)) == "Vector(1, 2)"
        """,
        """
        class Vector:
            def __init__(self, x, y): self.x, self.y = x, y
            def __add__(self, other): return Vector(self.x + other.x, self.y + other.y)
            def __mul__(self, k): return Vector(self.x * k, self.y * k)
            def __neg__(self): return Vector(-self.x, -self.y)
            def length(self): return (self.x ** 2 + self.y ** 2) ** 0.5
            def __abs__(self): return self.length()
            def __repr__(self): return f"Vector({self.x}, {self.y})"
        """,
        ("self.y * k", "self.y"),
    ),
    "items": (
        """
        g = Grid(2, 3)
        g[1, 2] = 5
        assert g[1, 2] == 5 and g[0, 0] == 0
        del g[1, 2]
        assert g[1, 2] == 0
        assert [list(row) for row in g] == [[0, 0, 0], [0, 0, 0]]
        """,
        """
        class Grid:
            def __init__(self, rows, columns): self.rows = [[0] * columns for _ in range(rows)]
            def __getitem__(self, place): return self.rows[place[0]][place[1]]
            def __setitem__(self, place, value): self.rows[place[0]][place[1]] = value
            def __delitem__(self, place): self[place] = 0
            def __iter__(self): return iter(self.rows)
        """,
        ("self[place] = 0", "pass"),
    ),
    "iteration": (
        "assert list(Countdown(3)) == [3, 2, 1]\nit = iter(Countdown(2))\nassert next(it) == 2\nassert next(it) == 1\n"
        "try:\n    next(it)\n    assert False\nexcept StopIteration:\n    pass",
        "class Countdown:\n    def __init__(self, n): self.n = n\n    def __iter__(self): return self\n"
        "    def __next__(self):\n        if self.n == 0: raise StopIteration\n        self.n -= 1\n"
        "        return self.n + 1",
        ("self.n + 1", "self.n"),
    ),
    "a context manager": (
        """
        log = []
        with Managed(log.append) as m:
            m.say("x")
        assert log == ["enter", "x", "exit"]
        with Managed(log.append):
            raise ValueError("gone")
        assert log[-1] == "exit"
        """,
        """
        class Managed:
            def __init__(self, write): self.write = write
            def __enter__(self): self.write("enter"); return self
            def __exit__(self, kind, error, trace): self.write("exit"); return kind is ValueError
            def say(self, text): self.write(text)
        """,
        ('self.write("exit"); return', 'self.write("x"); return'),
    ),
    "contextmanager": (
        "with doubled(2) as x:\n    assert x == 4\nlog = []\ntry:\n    with doubled(3, log) as x:\n        1 / 0\n"
        "except ZeroDivisionError:\n    log.append(x)\nassert log == ['closed', 6]",
        "from contextlib import contextmanager\n@contextmanager\n"
        "def doubled(x, log=None):\n    try:\n        yield 2 * x\n"
        "    finally:\n        if log is not None: log.append('closed')",
        ("2 * x", "x"),
    ),
    "inheritance": (
        """
        d = Dog("Rex")
        assert d.speak() == "Rex says Woof" and isinstance(d, Animal) and not isinstance(Animal("x"), Dog)
        assert issubclass(Dog, Animal) and type(d).__name__ == "Dog"
        assert [a.speak() for a in (Dog("a"), Cat("b"))] == ["a says Woof", "b says Meow"]
        """,
        """
        class Animal:
            sound = "..."
            def __init__(self, name): self.name = name
            def speak(self): return f"{self.name} says {self.sound}"
        class Dog(Animal): sound = "Woof"
        class Cat(Animal): sound = "Meow"
        """,
        ('"Woof"', '"Wuff"'),
    ),
    "an enumeration": (
        "assert Color.RED.value == 1 and Color.RED.name == 'RED' and mix(Color.RED, Color.BLUE) is Color.PURPLE\n"
        "assert [c.name for c in Color] == ['RED', 'BLUE', 'PURPLE'] and Color(2) == Color.BLUE\n"
        "assert Color['RED'] is Color.RED and len(Color) == 3",
        "from enum import Enum\nclass Color(Enum):\n    RED = 1\n    BLUE = 2\n    PURPLE = 3\n"
        "def mix(a, b): return Color.PURPLE if a is not b else a",
        ("return Color.PURPLE if a is not b else a", "return a"),
    ),
    "class methods": (
        "t = Temperature.from_fahrenheit(212)\nassert t.celsius == 100\nassert Temperature.is_valid(-300) is False\n"
        "assert Temperature.ZERO == -273.15",
        "class Temperature:\n    ZERO = -273.15\n    def __init__(self, celsius): self.celsius = celsius\n"
        "    @classmethod\n    def from_fahrenheit(cls, f): return cls((f - 32) * 5 / 9)\n"
        "    @staticmethod\n    def is_valid(c): return c >= Temperature.ZERO",
        ("* 5 / 9", "* 9 / 5"),
    ),
    "a data class": (
        "p = Point(1, 2)\nassert (p.x, p.y) == (1, 2)\nassert str(p) == 'Point(x=1, y=2)'\nassert p.moved(1).x == 2",
        "from dataclasses import dataclass, replace\n@dataclass(frozen=True)\nclass Point:\n    x: int\n    y: int\n"
        "    def moved(self, dx): return replace(self, x=self.x + dx)",
        ("x=self.x + dx", "x=dx"),
    ),
    "a named tuple with a method": (
        "p = Pair(3, 4)\nassert p.norm() == 5.0 and p.a == 3 and p == (3, 4) and tuple(p) == (3, 4)",
        "from typing import NamedTuple\nclass Pair(NamedTuple):\n    a: int\n    b: int\n"
        "    def norm(self): return (self.a ** 2 + self.b ** 2) ** 0.5",
        ("** 0.5", ""),
    ),
    "a list with more": (
        "s = SortedList([3, 1])\ns.add(2)\nassert s == [1, 2, 3] and s[0] == 1 and len(s) == 3 and 2 in s\n"
        "s.append(0)\nassert list(s) == [0, 1, 2, 3]",
        "class SortedList(list):\n    def __init__(self, items): super().__init__(sorted(items))\n"
        "    def add(self, x): super().append(x); self.sort()\n    append = add",
        ("self.sort()", "pass"),
    ),
    "a default dictionary of its own": (
        "d = Registry()\nd['a'] = 1\n"
        "assert d['a'] == 1 and d['b'] == 'no b' and d == {'a': 1}\nassert d.names() == ['a']",
        "class Registry(dict):\n    def __missing__(self, key): return 'no ' + key\n"
        "    def names(self): return sorted(self)",
        ("'no ' + key", "key"),
    ),
    "decorators": (
        """
        calls = []
        @memoize
        def slow(n):
            "Doubles."
            calls.append(n)
            return 2 * n
        assert [slow(2), slow(2), slow(3)] == [4, 4, 6]
        assert calls == [2, 3] and slow.__name__ == "slow" and slow.__doc__ == "Doubles."
        """,
        """
        import functools
        def memoize(function):
            seen = {}
            @functools.wraps(function)
            def wrapper(n):
                if n not in seen: seen[n] = function(n)
                return seen[n]
            return wrapper
        """,
        ("if n not in seen: ", ""),
    ),
    "functions as arguments": (
        "assert apply_twice(lambda v: v + 3, 1) == 7\nassert compose(str, len)([1, 2]) == '2'\n"
        "assert sort_by([(2, 'a'), (1, 'b')], key=lambda p: p[0]) == [(1, 'b'), (2, 'a')]\n"
        "assert fold(max, [1, 5, 2]) == 5",
        "import functools\ndef apply_twice(f, x): return f(f(x))\ndef compose(f, g): return lambda x: f(g(x))\n"
        "def sort_by(xs, key): return sorted(xs, key=key)\ndef fold(f, xs): return functools.reduce(f, xs)",
        ("f(f(x))", "f(x)"),
    ),
    "events": (
        "seen = []\nbus = EventBus()\nbus.on('a', seen.append)\n"
        "bus.on('a', lambda v: seen.append(-v))\nbus.emit('a', 1)\n"
        "bus.emit('b', 2)\nassert seen == [1, -1]",
        "class EventBus:\n    def __init__(self): self.handlers = {}\n"
        "    def on(self, name, handler): self.handlers.setdefault(name, []).append(handler)\n"
        "    def emit(self, name, value):\n        for handler in self.handlers.get(name, []): handler(value)",
        ("in self.handlers.get(name, [])", "in self.handlers.get(name, [])[:1]"),
    ),
    "a generator that is sent to": (
        "g = averager()\nnext(g)\nassert g.send(10) == 10\nassert g.send(20) == 15\ng.close()",
        "def averager():\n    total, count, mean = 0, 0, None\n    while True:\n        total += yield mean\n"
        "        count += 1\n        mean = total / count",
        ("total / count", "total"),
    ),
    "endless generators": (
        "import itertools\nassert list(itertools.islice(primes(), 5)) == [2, 3, 5, 7, 11]\ng = primes()\n"
        "assert [next(g) for _ in range(3)] == [2, 3, 5]\nfor p in primes():\n    if p > 100: break\nassert p == 101",
        "def primes():\n    n = 2\n    while True:\n"
        "        if all(n % d for d in range(2, n)): yield n\n        n += 1",
        ("range(2, n)", "range(3, n)"),
    ),
    "coroutines": (
        "import asyncio\nasync def main():\n    a, b = await asyncio.gather(fetch(1), fetch(2))\n    out = []\n"
        "    async for x in ticks(3): out.append(x)\n    async with Session() as s: out.append(await s.get())\n"
        "    return a, b, out\nassert asyncio.run(main()) == (10, 20, [0, 1, 2, 'got'])",
        "import asyncio\nasync def fetch(x):\n    await asyncio.sleep(0.001)\n    return 10 * x\n"
        "async def ticks(n):\n    for i in range(n):\n        await asyncio.sleep(0)\n        yield i\n"
        "class Session:\n    async def __aenter__(self): return self\n"
        "    async def __aexit__(self, *error): return False\n"
        "    async def get(self): return 'got'",
        ("10 * x", "x"),
    ),
    "in place": (
        "m = [[1, 2], [3, 4]]\nrow = m[0]\nassert rotate(m) is None\nassert m == [[3, 1], [4, 2]] and m[0] is row",
        "def rotate(m):\n    n = len(m)\n    turned = [[m[n - 1 - j][i] for j in range(n)] for i in range(n)]\n"
        "    for i in range(n): m[i][:] = turned[i]",
        ("m[n - 1 - j][i]", "m[j][i]"),
    ),
    "a graph": (
        "g = Graph()\nfor a, b in [(1, 2), (2, 3), (1, 3)]: g.add_edge(a, b)\n"
        "assert g.bfs(1) == [1, 2, 3] and g.edges == {1: [2, 3], 2: [3]}\nassert g.path(1, 9) is None",
        "class Graph:\n    def __init__(self): self.edges = {}\n"
        "    def add_edge(self, a, b): self.edges.setdefault(a, []).append(b)\n"
        "    def bfs(self, start):\n        order = [start]\n        for node in order:\n"
        "            order += [n for n in self.edges.get(node, []) if n not in order]\n        return order\n"
        "    def path(self, a, b): return [a, b] if b in self.bfs(a) else None",
        ("if n not in order", "if n in order"),
    ),
    "built step by step": (
        "q = Query('t').where('a > 1').where('b < 2').limit(3)\n"
        "assert q.build() == 'SELECT * FROM t WHERE a > 1 AND b < 2 "
        "LIMIT 3'",
        "class Query:\n    def __init__(self, table): self.table, self.parts, self.n = table, [], None\n"
        "    def where(self, part): self.parts.append(part); return self\n"
        "    def limit(self, n): self.n = n; return self\n"
        "    def build(self): return f\"SELECT * FROM {self.table} WHERE {' AND '.join(self.parts)} LIMIT {self.n}\"",
        ("' AND '", "' OR '"),
    ),
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


def _changed(program, change):
    assert program.count(change[0]) >= 1, change
    return program.replace(*change)


TASKS = {
    name: (dedent(tests).strip(), dedent(right).strip(), _changed(dedent(right).strip(), change))
    for name, (tests, right, change) in _TASKS.items()
}
