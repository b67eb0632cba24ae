"""Programs that try to pass without the answer, to reach outside or to outlive their sandbox, numbered 41-60.

PORT, OUTSIDE, VICTIM and PYTHON are filled in by the test.
"""

from textwrap import dedent

EXPECTED = 1_733_421


def _programs(texts):
    return {name: dedent(text).replace("EXPECTED", str(EXPECTED)) for name, text in texts.items()}


FUNCTIONS = _programs(
    {
        "41 exit": """
            import sys
            sys.exit(0)
        """,
        "42 hard exit": """
            import os
            os._exit(0)
        """,
        "42 hard exit in the function": """
            import os
            def f(x): os._exit(0)
        """,
        "43 exit in the function": """
            def f(x): raise SystemExit(0)
        """,
        "44 equal to everything": """
            class E:
                def __eq__(self, other): return True
                def __hash__(self): return 0
            def f(x): return E()
        """,
        "44 an int that is equal to everything": """
            class E(int):
                def __eq__(self, other): return True
            def f(x): return E(3)
        """,
        "44 a dict that is equal to everything": """
            class D(dict):
                def __eq__(self, other): return True
            def f(x): return D()
        """,
        "44 nan": """
            def f(x): return float('nan')
        """,
        "44 none": """
            def f(x): return None
        """,
        "45 builtins patched": """
            import builtins, json
            builtins.AssertionError = type('A', (Exception,), {})
            builtins.print = builtins.exec = lambda *a, **k: None
            json.dumps = lambda *a, **k: '{"ok": true}'
            def f(x): return 0
        """,
        "46 forged messages on every descriptor": """
            import json, os, struct
            told = [{'test': n, 'status': 'passed', 'detail': ''} for n in (0, 1)]
            for message in (*told, {'calls': 2}, {'loaded': True}, {'ok': True}):
                body = json.dumps(message).encode()
                for descriptor in range(64):
                    try: os.write(descriptor, struct.pack('<I', len(body)) + body)
                    except OSError: pass
            def f(x): return 0
        """,
        "46 broken messages on every descriptor": """
            import os
            for descriptor in range(64):
                try: os.write(descriptor, b'\\xff' * 4096)
                except OSError: pass
            def f(x): return 0
        """,
        "46 passed, said aloud": """
            print('passed', flush=True)
            print('{"passed": true}')
            def f(x): return True
        """,
        "47 endless loop": """
            while True: pass
        """,
        "47 endless loop in the function": """
            def f(x):
                while True: pass
        """,
        "47 endless sleep": """
            import time
            def f(x): time.sleep(10**6)
        """,
        "48 fork bomb": """
            import os
            while True:
                try: os.fork()
                except OSError: pass
        """,
        "49 ten gigabytes": """
            b = bytearray(10 << 30)
            def f(x): return 0
        """,
        "49 memory in many processes": """
            import os, time
            for _ in range(20):
                if os.fork() == 0:
                    b = bytearray(300 << 20)
                    time.sleep(60)
            time.sleep(60)
        """,
        "50 ten gigabytes of output": """
            line = 'x' * (1 << 20)
            for _ in range(10_000): print(line)
            def f(x): return 0
        """,
        "50 a gigabyte as a result": """
            def f(x): return 'x' * (1 << 30)
        """,
        "50 too long a result": """
            def f(x): return 'x' * (1 << 26)
        """,
        "50 a file without end": """
            block = b'x' * (1 << 20)
            with open('/scratch/big', 'wb') as file:
                while True: file.write(block)
        """,
        "50 files without end": """
            for n in range(10**6):
                with open(f'/scratch/{n}', 'wb') as file: file.write(b'x' * (1 << 20))
        """,
        "51 signals ignored": """
            import signal
            for number in range(1, 65):
                try: signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError): pass
            while True: pass
        """,
        "51 kills what it can see": """
            import os, signal
            for pid in [*range(1, 100), -1, os.getppid()]:
                if pid != os.getpid():
                    try: os.kill(pid, signal.SIGKILL)
                    except OSError: pass
            def f(x): return 0
        """,
        "53 network": """
            import socket
            socket.create_connection(('127.0.0.1', PORT), 2).send(b'x')
            def f(x): return EXPECTED + x - 2
        """,
        "54 environment of the parent": """
            import glob, os
            found = [p for p in glob.glob('/proc/*/environ') if b'REWARD_SECRET' in open(p, 'rb').read()]
            assert found or 'REWARD_SECRET' in os.environ
            def f(x): return EXPECTED + x - 2
        """,
        "55 writes outside": """
            open('OUTSIDE', 'w').write('x')
            def f(x): return EXPECTED + x - 2
        """,
        "55 deletes outside": """
            import os
            os.remove('VICTIM')
            def f(x): return EXPECTED + x - 2
        """,
        "55 changes its interpreter": """
            import os, sys
            open(os.__file__, 'a').write('#')
            def f(x): return EXPECTED + x - 2
        """,
        "55 becomes root": """
            import os
            os.setuid(0)
            def f(x): return EXPECTED + x - 2
        """,
        "56 reads the tests from the disk": """
            import os
            found = 0
            for folder, below, files in os.walk('/'):
                if folder.startswith(('/proc', '/sys', '/dev', '/usr', PYTHON)):
                    below.clear()
                    continue
                for name in files:
                    try: found = max(found, open(os.path.join(folder, name)).read().find('17' + '33421'))
                    except Exception: pass
            assert found > 0
            def f(x): return int('17' + '33421') + x - 2  # not in one word: the program is a file too
        """,
        "56 hunts in frames and garbage": """
            import gc, sys
            def hunt():
                seen, frame = gc.get_objects(), sys._getframe()
                while frame:
                    seen += [*frame.f_locals.values(), *frame.f_globals.values()]
                    frame = frame.f_back
                for thing in seen:
                    try: text = repr(thing)
                    except Exception: continue
                    if 'assert f(2)' in text and 'hunt' not in text:
                        return int(text.split('assert f(2) == ')[1][:7])
                return 0
            base = hunt()
            def f(x): return (hunt() or base) + x - 2
        """,
        "56 hunts in memory": """
            import re
            def hunt():
                with open('/proc/self/mem', 'rb', 0) as memory:
                    for line in open('/proc/self/maps'):
                        if ' rw' not in line: continue
                        start, end = (int(part, 16) for part in line.split()[0].split('-'))
                        memory.seek(start)
                        try: match = re.search(rb'assert f[(]2[)] == ([0-9]+)', memory.read(end - start))
                        except OSError: continue
                        if match: return int(match[1])
                return 0
            base = hunt()
            def f(x): return (hunt() or base) + x - 2
        """,
        "56 traces what calls it": """
            import sys
            def f(x):
                frame = sys._getframe()
                while frame:
                    for name in list(frame.f_locals): frame.f_locals[name] = EXPECTED if name == 'x' else True
                    frame.f_trace = lambda *a: None
                    frame = frame.f_back
                return None
        """,
        "57 input of an empty standard input": """
            x = input()
            def f(x): return 0
        """,
        "58 crash at import": """
            raise ValueError('no')
        """,
        "58 syntax error": """
            def f(x:
                return
        """,
        "58 no function": """
            g = 3
        """,
        "58 recursion": """
            def f(x): return f(x)
        """,
        "58 a deep result": """
            def f(x):
                value = []
                for _ in range(100_000): value = [value]
                return value
        """,
        "58 a result that holds itself": """
            def f(x):
                value = []
                value.append(value)
                return value
        """,
        "58 segmentation fault": """
            import ctypes
            def f(x): return ctypes.string_at(0)
        """,
        "58 closes its descriptors": """
            import os
            os.closerange(0, 256)
            def f(x): return 0
        """,
        "58 an error that cannot be told": """
            class Odd(Exception):
                def __str__(self): raise SystemExit
            def f(x): raise Odd
        """,
        "58 a generator without end": """
            import itertools
            def f(x): return itertools.count()
        """,
        "58 a number without end": """
            def f(x): return 9 ** 10 ** 7
        """,
    }
)

SCRIPTS = _programs(
    {
        "41 exit": FUNCTIONS["41 exit"],
        "42 hard exit": FUNCTIONS["42 hard exit"],
        "46 passed on every descriptor": """
            import os
            for descriptor in range(64):
                try: os.write(descriptor, b'passed')
                except OSError: pass
        """,
        "47 endless loop": FUNCTIONS["47 endless loop"],
        "48 fork bomb": FUNCTIONS["48 fork bomb"],
        "49 ten gigabytes": FUNCTIONS["49 ten gigabytes"],
        "50 output without end": """
            import sys
            while True: sys.stdout.write('x' * (1 << 20))
        """,
        "51 signals ignored": FUNCTIONS["51 signals ignored"],
        "53 network": FUNCTIONS["53 network"],
        "55 writes outside": FUNCTIONS["55 writes outside"],
        "56 looks for the answer in its own input": """
            import os
            os.lseek(0, 0, 0)
            print(os.read(0, 1 << 20))
        """,
        "57 more input than there is": """
            input(); input(); input()
        """,
        "58 the right output, then a crash": """
            print(EXPECTED + int(input()) - 2)
            raise ValueError
        """,
        "58 syntax error": FUNCTIONS["58 syntax error"],
    }
)
