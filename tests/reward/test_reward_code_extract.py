"""The program in a completion, whatever its form."""

import pytest

from reward.code.extract import extract_code


@pytest.mark.parametrize(
    ("completion", "prefix", "code"),
    [
        ("Look:\n```python\nx = 1\n```\nand better\n```python\nx = 2\n```\nthat is all", "", "x = 2"),
        ("```py\r\nx = 1\r\n```", "", "x = 1"),
        ("```python\nx = 1", "", "x = 1"),
        ("```\nx = 1\n```", "", None),
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
