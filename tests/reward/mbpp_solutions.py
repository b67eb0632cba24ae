"""Solutions of MBPP's tasks, written for these tests, by the name of the function that the task asks for."""

from textwrap import dedent

_SOLUTIONS = {
    "remove_Occ": """
        def remove_Occ(s, ch):
            s = s.replace(ch, "", 1)
            return s[::-1].replace(ch, "", 1)[::-1]
    """,
    "freq_count": """
        from collections import Counter
        def freq_count(xs): return Counter(xs)
    """,
    "find_Volume": "def find_Volume(a, b, c): return a * b * c / 2",
    "square_perimeter": "def square_perimeter(a): return 4 * a",
    "is_woodall": """
        def is_woodall(x):
            n = 1
            while n * 2 ** n - 1 < x: n += 1
            return n * 2 ** n - 1 == x
    """,
    "maximum_Sum": "def maximum_Sum(rows): return max(map(sum, rows))",
    "check_k_elements": "def check_k_elements(rows, k): return all(x == k for row in rows for x in row)",
    "get_Odd_Occurrence": """
        from functools import reduce
        from operator import xor
        def get_Odd_Occurrence(xs, n): return reduce(xor, xs)
    """,
    "max_Prime_Factors": """
        def max_Prime_Factors(n):
            best, p = n, 2
            while p * p <= n:
                if n % p == 0: n //= p; best = max(p, n)
                else: p += 1
            return n if n > 1 else best
    """,
    "find_rect_num": "def find_rect_num(n): return n * (n + 1)",
    "div_even_odd": """
        def div_even_odd(xs):
            even = next(x for x in xs if x % 2 == 0)
            odd = next(x for x in xs if x % 2)
            return even / odd
    """,
    "filter_evennumbers": "def filter_evennumbers(xs): return list(filter(lambda x: x % 2 == 0, xs))",
    "text_match_string": """
        import re
        def text_match_string(text): return "Found a match!" if re.search(r"^\\w+", text) else "Not matched!"
    """,
    "compute_Last_Digit": """
        from math import factorial
        def compute_Last_Digit(a, b): return factorial(b) // factorial(a) % 10
    """,
    "min_length_list": """
        def min_length_list(rows):
            shortest = min(rows, key=len)
            return len(shortest), shortest
    """,
    "check_Equality": 'def check_Equality(s): return "Equal" if s[0] == s[-1] else "Not Equal"',
    "check(70)": "def check(n): return 2 * int(str(n)[::-1]) - 1 == n",
    "is_octagonal": "def is_octagonal(n): return n * (3 * n - 2)",
    "smallest_num": "def smallest_num(xs): return min(xs)",
    "recursive_list_sum": """
        def recursive_list_sum(xs): return sum(recursive_list_sum(x) if isinstance(x, list) else x for x in xs)
    """,
    "is_Monotonic": "def is_Monotonic(xs): return xs in (sorted(xs), sorted(xs, reverse=True))",
    "comb_sort": """
        def comb_sort(xs):
            gap, swapped = len(xs), True
            while gap > 1 or swapped:
                gap, swapped = max(1, int(gap / 1.3)), False
                for i in range(len(xs) - gap):
                    if xs[i] > xs[i + gap]: xs[i], xs[i + gap], swapped = xs[i + gap], xs[i], True
            return xs
    """,
    "is_samepatterns": """
        def is_samepatterns(colors, patterns):
            same_length = len(colors) == len(patterns)
            return same_length and len(set(zip(colors, patterns))) == len(set(colors)) == len(set(patterns))
    """,
    "is_Diff": "def is_Diff(n): return n % 11 == 0",
    "tetrahedral_number": "def tetrahedral_number(n): return n * (n + 1) * (n + 2) / 6",
    "get_Char": "def get_Char(s): return chr((sum(ord(c) - 96 for c in s) - 1) % 26 + 97)",
    "centered_hexagonal_number": "def centered_hexagonal_number(n): return 3 * n * (n - 1) + 1",
    "closest_num": "def closest_num(n): return n - 1",
    "is_undulating": "def is_undulating(s): return len(set(s)) == 2 and all(a == b for a, b in zip(s, s[2:]))",
    "Find_Min_Length": "def Find_Min_Length(rows): return min(map(len, rows))",
    "multiply_num": """
        from math import prod
        def multiply_num(xs): return prod(xs) / len(xs)
    """,
    "sort_sublists": "def sort_sublists(rows): return list(map(sorted, rows))",
    "extract_missing": """
        def extract_missing(rows, start, stop):
            found = []
            for row in rows:
                if row[0] > start: found.append((start, row[0])); start = row[1]
                if row[1] < stop: found.append((row[1], stop))
            return found
    """,
    "check_integer": "def check_integer(s): return s.isdigit()",
    "tuple_to_int": 'def tuple_to_int(digits): return int("".join(map(str, digits)))',
    "search([1,1": """
        def search(xs, n):
            (only,) = {x for x in xs if xs.count(x) == 1}
            return only
    """,
    "long_words": "def long_words(n, text): return [word for word in text.split() if len(word) > n]",
    "is_tree_balanced": """
        class Node:
            def __init__(self, data, left=None, right=None): self.data, self.left, self.right = data, left, right
        root = Node(1, Node(2, Node(4), Node(5, Node(7))), Node(3, None, Node(6)))
        root.left.left.left = Node(8, Node(9))
        root1 = Node(1, Node(2, Node(4), Node(5)), Node(3))
        root2 = Node(1, Node(2, Node(3, Node(4))))
        def height(node): return 0 if node is None else 1 + max(height(node.left), height(node.right))
        def is_tree_balanced(node):
            if node is None: return True
            halves = is_tree_balanced(node.left) and is_tree_balanced(node.right)
            return halves and abs(height(node.left) - height(node.right)) <= 1
    """,
}

# a function's name that is a builtin's too
_SOLUTIONS["sum(10,15)"] = """
    def sum(a, b):
        total = 0
        for i in range(1, min(a, b) + 1):
            if a % i == 0 and b % i == 0: total += i
        return total
"""

SOLUTIONS = {name: dedent(text).strip() for name, text in _SOLUTIONS.items()}
