"""The program in a completion, whatever its form."""

import time

import pytest

from reward.code.extract import extract_code
from reward.code.reward import CodeReward
from reward.code.verdict import Verdict


@pytest.mark.parametrize(
    ("completion", "prefix", "code"),
    [
        ("Look:\n```python\nx = 1\n```\nand better\n```python\nx = 2\n```\nthat is all", "", "x = 2"),
        ("```py\r\nx = 1\r\n```", "", "x = 1"),
        ("```python\nx = 1", "", "x = 1"),
        ("```\nx = 1\n```", "", "x = 1"),
        ("- ```\r\n  x = 1\r\n  ```", "", "x = 1"),
        ("So:\n```\nx = 1\n```\nIt prints\n```text\n1\n```", "", "x = 1"),
        ("```\nx = 1\n```\nor\n```python\ny = 1\n```\nprints\n```\n1\n```", "", "y = 1"),
        ("Here:\n```\ndef f(x): return 2\n```", "def f(x):\n", "def f(x): return 2"),
        ("So:\n> ```python\n> def f(x):\n>     return 2\n> ```\nDone", "", "def f(x):\n    return 2"),
        ("```python\n\ufeffx = 1\n```", "", "x = 1"),
        ("```python\u200b\nx = 1\n```", "", "x = 1"),
        ("x = 1", "", None),
        ("```python\n```", "", None),
        ("    return x\n```\nThis works because ...", "def f(x):\n", "def f(x):\n    return x\n"),
        ("```python\ndef f(x): return 2\n```", "def f(x):\n", "def f(x): return 2"),
        ("1. ```python\n   def f(x):\n       return 2\n   ```\n2. Done", "", "def f(x):\n    return 2"),
        ("  ```python\n  def f(x):\n      return 2", "", "def f(x):\n    return 2"),
        ("````python\nx = 1\n```\n````", "", "x = 1\n```"),
        ("~~~python\nx = 1\n~~~", "", "x = 1"),
        ('```python title="a.py"\nx = 1\n```', "", "x = 1"),
        ("```python\nx = '```'\ny = 2\n```\n```text\n2\n```", "", "x = '```'\ny = 2"),
        ("```python\n# ```\n# >>> f(1)\n# ```\nx = 1\n```", "", "# ```\n# >>> f(1)\n# ```\nx = 1"),
        ("```python\ndef f(x):\n    '''Doc\n    ```\n    '''\n```", "", "def f(x):\n    '''Doc\n    ```\n    '''"),
        ("```python\ns = '''never closed\n```\nso:\n```python\ns = '''x'''\n```", "", "s = '''x'''"),
        ("```python\nx = 1  # don't\n```\nIt isn't ```b```", "", "x = 1  # don't"),
        (
            "```python\ndef f(x): return g(x)\n```",
            "import a\ndef g(x): return x\ndef f(x):\n",
            "import a\ndef g(x): return x\ndef f(x): return g(x)",
        ),
        ("```python\n    return x\n```", "import a\ndef f(x):\n", "import a\ndef f(x):\n    return x"),
        (
            "```python\nreturn x\n```",
            "class S:\n    def f(self, x):\n",
            "class S:\n    def f(self, x):\n        return x",
        ),
        (
            "```python\nfrom __future__ import annotations\nimport b\ndef f(x): pass\n```",
            "import a\n@cache\ndef f(x):\n",
            "from __future__ import annotations\nimport a\nimport b\ndef f(x): pass",
        ),
        (
            "    return x\n```\nand so on",
            "def f(x):\n    '''Doc:\n    ```python\n    >>> f(1)\n    ```\n    '''\n",
            "def f(x):\n    '''Doc:\n    ```python\n    >>> f(1)\n    ```\n    '''\n    return x\n",
        ),
        ("    return x\n```", "```python\ndef f(x):\n", "def f(x):\n    return x"),
    ],
)
def test_extract_code(completion, prefix, code):
    assert extract_code(completion, prefix) == code


@pytest.mark.parametrize(
    ("later", "code"),
    [("print(f(1))", "def f(x): return 2"), ("def f(x): return 3", "def f(x): return 3"), ("f = 4", "f = 4")],
)
def test_an_example_after_the_solution_does_not_replace_it(later, code):
    completion = f"```python\ndef f(x): return 2\n```\nExample:\n```python\n{later}\n```"
    assert extract_code(completion, needed=["f"]) == code
    assert extract_code(completion, needed=["g"]) == later


class Noting:
    """In place of a grader: notes the programs."""

    def grade(self, jobs):
        self.programs = [program for program, _ in jobs]
        return [Verdict(True, "passed", 1, 1) for _ in jobs]


def test_the_code_reward_grades_the_block_that_its_tests_need():
    grader = Noting()
    completion = "```python\ndef f(x): return 2\n```\n```python\nprint(f(1))\n```"
    CodeReward(grader).score([""] * 2, [completion] * 2, {"test_list": [["assert f(1) == 2"], ["assert open(f)"]]})
    assert grader.programs == ["def f(x): return 2", "print(f(1))"]


def test_hostile_fences_take_linear_time():
    for text in ("```" + " " * 50_000, "`" * 50_000, "> " * 50_000, "```\n" * 9_000, " " * 50_000 + ">"):
        started = time.process_time()
        extract_code(text)
        assert time.process_time() - started < 2, text[:9]
