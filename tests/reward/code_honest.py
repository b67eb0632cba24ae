"""Programs that are right in forms of their own: (program, test), each passes; and tests whose outcome only the program
could decide."""

HONEST = {
    "a view of a mapping": (
        "from types import MappingProxyType\ndef f(): return MappingProxyType({1:2})",
        "assert f() == {1:2} and f()[1] == 2",
    ),
    "a chain of maps, looked up": (
        "from collections import ChainMap\ndef f(): return ChainMap({1:2},{3:4})",
        "assert f()[3] == 4 and dict(f()) == {1:2,3:4}",
    ),
    "a chain of maps, compared": (
        "from collections import ChainMap\ndef f(): return ChainMap({1:2},{3:4})",
        "assert f() == {1:2,3:4}",
    ),
    "a user's dict": (
        "from collections import UserDict\ndef f(): return UserDict(a=1)",
        "assert f() == {'a':1}",
    ),
    "a user's list": (
        "from collections import UserList\ndef f(): return UserList([1])",
        "assert f() == [1]",
    ),
    "an ordered dict's methods": (
        "from collections import OrderedDict\ndef f(): return OrderedDict([(1,2),(3,4)])",
        "d=f()\nd.move_to_end(1)\nassert list(d)==[3,1]",
    ),
    "a counter's methods": (
        "from collections import Counter\ndef f(s): return Counter(s)",
        "assert f('aab').most_common(1)==[('a',2)] and (f('ab')+f('b'))['b']==2 and f('')['x']==0",
    ),
    "map": (
        "def f(): return map(str,[1,2])",
        "assert list(f())==['1','2']",
    ),
    "filter": (
        "def f(): return filter(None,[0,1])",
        "assert set(f())=={1}",
    ),
    "reversed": (
        "def f(): return reversed([1,2])",
        "assert list(f())==[2,1]",
    ),
    "enumerate": (
        "def f(): return enumerate('ab')",
        "assert dict(f())=={0:'a',1:'b'}",
    ),
    "permutations": (
        "import itertools\ndef f(): return itertools.permutations([1,2,3])",
        "assert len(list(f()))==6",
    ),
    "chain": (
        "import itertools\ndef f(): return itertools.chain([1],[2])",
        "assert sorted(f())==[1,2]",
    ),
    "count": (
        "import itertools\ndef f(): return itertools.count(5)",
        "g=f()\nassert next(g)==5 and next(g)==6",
    ),
    "cycle": (
        "import itertools\ndef f(): return itertools.cycle('ab')",
        "from itertools import islice\nassert ''.join(islice(f(),5))=='ababa'",
    ),
    "a match, or none": (
        "import re\ndef f(s): return re.match(r'(\\w)(\\d)',s)",
        "m=f('a1')\nassert m and m.group(1)=='a' and m.groups()==('a','1')\nassert f('!!') is None",
    ),
    "a match is true": (
        "import re\ndef f(s): return re.match(r'a',s)",
        "assert f('abc')\nassert not f('xbc')",
    ),
    "a type": (
        "def f(x): return type(x)",
        "assert f(3) is int and f('a') == str",
    ),
    "an error as a value": (
        "def f(x): return ValueError('a')",
        "assert isinstance(f(3), ValueError) and str(f(3))=='a'",
    ),
    "an integer enumeration": (
        "from enum import IntEnum\nclass P(IntEnum):\n    LOW=1\n    HIGH=2\ndef f(): return P.HIGH",
        "assert f()==2 and f()>1 and f()==P.HIGH and f().name=='HIGH'",
    ),
    "a text enumeration": (
        "from enum import Enum\nclass C(str,Enum):\n    R='red'\ndef f(): return C.R",
        "assert f()=='red' and f().value=='red' and f() is C.R and f().upper()=='RED'",
    ),
    "a plain enumeration": (
        "from enum import Enum\nclass C(Enum):\n    R='red'\ndef f(): return C.R",
        "assert f()==C.R and f().value=='red' and {C.R:1}[f()]==1 and f() in (C.R,)",
    ),
    "a path as text": (
        "from pathlib import Path\ndef f(a,b): return Path(a)/b",
        "assert str(f('a','b'))=='a/b' and f('a','b').name=='b'",
    ),
    "a path of the test": (
        "import os\ndef f(a,b): return os.path.join(a,b)",
        "from pathlib import Path\nassert Path(f('a','b'))==Path('a/b')",
    ),
    "a path as an argument": (
        "def f(p): return p.suffix",
        "from pathlib import Path\nassert f(Path('a.txt'))=='.txt'",
    ),
    "a typed dict": (
        "from typing import TypedDict\nclass T(TypedDict):\n    a:int\ndef f(): return T(a=1)",
        "assert f()=={'a':1}",
    ),
    "an array's shape": (
        "import numpy as np\ndef f(): return np.arange(6).reshape(2,3)",
        "import numpy as np\nassert f().shape==(2,3) and np.array_equal(f(),[[0,1,2],[3,4,5]])",
    ),
    "an array as a list": (
        "import numpy as np\ndef f(): return np.arange(3)",
        "assert f().tolist()==[0,1,2]",
    ),
    "an array where a list is compared": (
        "import numpy as np\ndef f(): return np.arange(3)",
        "assert f() == [0,1,2]",
    ),
    "a numpy number": (
        "import numpy as np\ndef f(): return np.float64(1.5)",
        "assert f()==1.5 and round(f())==2",
    ),
    "an array as an argument": (
        "import numpy as np\ndef f(a): return a*2",
        "import numpy as np\nassert (f(np.array([1,2]))==np.array([2,4])).all()",
    ),
    "an array changed in place": (
        "import numpy as np\ndef f(a): a[0]=9",
        "import numpy as np\nx=np.array([1,2])\nf(x)\nassert x[0]==9",
    ),
    "arrays in containers": (
        "import numpy as np\ndef f(): return {'a':np.array([1.5]),'b':[np.int64(1)]}",
        "import numpy as np\nd=f()\nassert d['a'].dtype==np.float64 and d['b']==[1]",
    ),
    "a numpy truth where a plain one is compared": (
        "import numpy as np\ndef f(): return np.bool_(True)",
        "assert f() is True",
    ),
    "a numpy number where a plain one is expected": (
        "import numpy as np\ndef f(): return np.max([1,2])",
        "assert f()==2 and isinstance(f(), int)",
    ),
    "a typed array": (
        "import array\ndef f(): return array.array('i',[1,2])",
        "assert list(f())==[1,2] and f()[1]==2",
    ),
    "a date with a zone": (
        "import datetime as d\ndef f(): return d.datetime(2020,1,1,tzinfo=d.timezone.utc)+d.timedelta(days=1)",
        "import datetime\nassert f()==datetime.datetime(2020,1,2,tzinfo=datetime.timezone.utc)",
    ),
    "a date with a zone by name": (
        "from zoneinfo import ZoneInfo\nimport datetime as d\n"
        "def f(): return d.datetime(2020,7,1,tzinfo=ZoneInfo('Europe/Berlin'))",
        "assert f().utcoffset().total_seconds()==7200",
    ),
    "a large number": (
        "def f(): return 10**5000",
        "assert f()==10**5000",
    ),
    "a dict with a number as its key": (
        "def f(x): return x[0]",
        "assert f({0:'a'})=='a'",
    ),
    "a subclass of int is an int": (
        "class E(int): pass\ndef f(x): return E(x)",
        "assert f(3)+1==4 and f(3)==3 and type(f(3)) is int",
    ),
    "a subclass of str with a method": (
        "class S(str):\n    def shout(self): return self.upper()+'!'\ndef f(x): return S(x)",
        "assert f('a')=='a' and f('a').shout()=='A!' and f('a')+'b'=='ab' and len(f('abc'))==3",
    ),
    "a subclass of float, constructed": (
        "class Money(float):\n    def cents(self): return round(self*100)\n",
        "m=Money(1.5)\nassert m.cents()==150 and m+1==2.5 and m==1.5 and m<2",
    ),
    "a subclass of list, constructed": (
        "class Stack(list):\n    push=list.append\n    def peek(self): return self[-1]",
        "s=Stack()\ns.push(1)\ns.push(2)\nassert s.peek()==2 and s==[1,2] and s.pop()==2 and len(s)==1",
    ),
    "a range": (
        "def f(): return range(3)",
        "assert f()==range(3) and list(f())==[0,1,2]",
    ),
    "bytes": (
        "def f(): return b'ab'",
        "assert f()==b'ab'",
    ),
    "a view of memory": (
        "def f(): return memoryview(b'ab')",
        "assert bytes(f())==b'ab'",
    ),
    "a builtin function as a key": (
        "def f(xs):\n    return sorted(xs,key=len)",
        "assert f(['aa','b'])==['b','aa']",
    ),
    "iterators of the test": (
        "def f(it): return sum(it)",
        "assert f(x for x in [1,2])==3\nassert f(iter([1]))==1\nimport itertools\n"
        "assert f(itertools.islice(itertools.count(),4))==6",
    ),
    "an iterator read on": (
        "def f(it,n):\n    out=[]\n    for x in it:\n        out.append(x)\n        if len(out)==n: return out",
        "import itertools\nc=itertools.count()\nassert f(c,3)==[0,1,2]\nassert next(c)==3",
    ),
    "a dict changed in place": (
        "def f(d):\n    d['x']=1\n    return len(d)",
        "d={}\nn=f(d)\nassert d=={'x':1} and n==1",
    ),
    "a set changed in place": (
        "def f(s):\n    s.add(3)",
        "s={1}\nf(s)\nassert s=={1,3}",
    ),
    "bytes changed in place": (
        "def f(b):\n    b.extend(b'x')",
        "b=bytearray(b'a')\nf(b)\nassert b==b'ax'",
    ),
    "a deque changed in place": (
        "def f(q):\n    q.append(q.popleft())",
        "from collections import deque\nq=deque([1,2,3])\nf(q)\nassert list(q)==[2,3,1]",
    ),
    "a nested list changed in place": (
        "def f(m):\n    for r in m: r.reverse()",
        "m=[[1,2],[3,4]]\nf(m)\nassert m==[[2,1],[4,3]]",
    ),
    "one list twice among the arguments": (
        "def f(a,b):\n    a.append(1)\n    return b",
        "x=[]\ny=f(x,x)\nassert y==[1] and y is x",
    ),
    "a default argument that grows": (
        "def f(x,acc=[]):\n    acc.append(x)\n    return acc",
        "assert f(1)==[1]\nassert f(2)==[1,2]",
    ),
    "items swapped in place": (
        "def swap(a,i,j): a[i],a[j]=a[j],a[i]",
        "a=[1,2,3]\nswap(a,0,2)\nassert a==[3,2,1]",
    ),
    "a counter changed in place": (
        "from collections import Counter\ndef f(c): c['a']+=1",
        "from collections import Counter\nc=Counter()\nf(c)\nassert c['a']==1 and c['zz']==0",
    ),
    "a tree of the tests": (
        "def f(root):\n    return 0 if root is None else 1+max(f(root.left),f(root.right))",
        "class TreeNode:\n    def __init__(self,val=0,left=None,right=None):\n"
        "        self.val=val;self.left=left;self.right=right\nassert f(TreeNode(1,TreeNode(2),None))==2\n"
        "assert f(None)==0",
    ),
    "a tree changed in place": (
        "class TreeNode:\n    def __init__(self,val=0,left=None,right=None):\n"
        "        self.val=val;self.left=left;self.right=right\ndef invert(r):\n"
        "    if r: r.left,r.right=invert(r.right),invert(r.left)\n    return r",
        "t=TreeNode(1,TreeNode(2),TreeNode(3))\nr=invert(t)\nassert r.left.val==3 and r.right.val==2 and r is t",
    ),
    "functions of the library as arguments": (
        "import math\ndef f(g,x): return g(x)",
        "import math\n"
        "assert f(math.sqrt,4)==2 and f(len,'abc')==3 and f(str.upper,'a')=='A' and f(int,'3')==3\n"
        "import operator\nassert f(operator.neg,1)==-1",
    ),
    "an error of a callback, caught": (
        "def f(g):\n    try: g()\n    except ValueError as e: return str(e)",
        "def boom(): raise ValueError('x')\nassert f(boom)=='x'",
    ),
    "an error of a callback, passed on": (
        "def f(g): return g()",
        "def boom(): raise KeyError('x')\ntry:\n    f(boom)\n    assert False\nexcept KeyError as e:\n"
        "    assert e.args==('x',)",
    ),
    "a decorator with retries": (
        "def retry(n):\n    def deco(g):\n        def w(*a):\n            for _ in range(n):\n"
        "                try: return g(*a)\n                except Exception: pass\n"
        "            raise RuntimeError('failed')\n        return w\n    return deco",
        "count=[0]\n@retry(3)\ndef g(x):\n    count[0]+=1\n    if count[0]<3: raise OSError('no')\n"
        "    return x\nassert g(5)==5 and count==[3]",
    ),
    "a standard input that the test sets": (
        "def f(): return input('? ')+input()",
        "import io,sys\nsys.stdin=io.StringIO('a\\nb\\n')\nassert f()=='ab'",
    ),
    "input patched": (
        "def f(): return int(input())*2",
        "from unittest.mock import patch\nwith patch('builtins.input',side_effect=['3']): assert f()==6",
    ),
    "input replaced": (
        "def f(): return int(input())*2",
        "import builtins\nbuiltins.input=lambda p='': '3'\nassert f()==6",
    ),
    "a standard input read whole": (
        "import sys\ndef f(): return sys.stdin.read()",
        "import io,sys\nsys.stdin=io.StringIO('xyz')\nassert f()=='xyz'",
    ),
    "a random seed": (
        "import random\ndef f(): return random.random()",
        "import random\nrandom.seed(1)\na=f()\nb=f()\nrandom.seed(1)\nassert f()==a and f()==b and a!=b",
    ),
    "a random shuffle": (
        "import random\ndef f(xs):\n    random.shuffle(xs)\n    return xs",
        "import random\nrandom.seed(3)\nx=[1,2,3,4]\nrandom.shuffle(x)\nrandom.seed(3)\nassert f([1,2,3,4])==x",
    ),
    "numpy's random seed": (
        "import numpy as np\ndef f(): return np.random.rand()",
        "import numpy as np\nnp.random.seed(1)\na=np.random.rand()\nnp.random.seed(1)\nassert f()==a",
    ),
    "a recursion limit that the test sets": (
        "def f(n):\n    if n==0: return 0\n    return 1+f(n-1)",
        "import sys\nsys.setrecursionlimit(5000)\nassert f(3000)==3000",
    ),
    "a coroutine": (
        "async def f(x): return x+1",
        "import asyncio\nassert asyncio.run(f(1))==2\n"
        "assert asyncio.get_event_loop_policy().new_event_loop().run_until_complete(f(2))==3",
    ),
    "a coroutine that fails": (
        "import asyncio\nasync def f(x):\n    if x<0: raise ValueError('neg')\n    await asyncio.sleep(0)\n"
        "    return x",
        "import asyncio\nasync def main():\n    try:\n        await f(-1)\n"
        "    except ValueError: return await f(3)\nassert asyncio.run(main())==3",
    ),
    "a coroutine that is cancelled": (
        "import asyncio\nasync def f():\n    await asyncio.sleep(30)",
        "import asyncio\nasync def main():\n    try:\n        await asyncio.wait_for(f(),0.05)\n"
        "    except asyncio.TimeoutError: return 'timeout'\nassert asyncio.run(main())=='timeout'",
    ),
    "an error of json": (
        "import json\ndef f(s): return json.loads(s)",
        "import json\ntry:\n    f('{')\n    assert False\nexcept json.JSONDecodeError: pass",
    ),
    "the text of a KeyError": (
        "def f(x): raise KeyError('k')",
        "try:\n    f(1)\nexcept KeyError as e: assert str(e)==\"'k'\"\nelse: assert False",
    ),
    "an error with an attribute": (
        "class MyErr(ValueError):\n"
        "    def __init__(self,code): super().__init__('code %d'%code); self.code=code\n"
        "def f(): raise MyErr(3)",
        "try:\n    f()\n    assert False\n"
        "except ValueError as e: assert e.code==3 and str(e)=='code 3' and type(e).__name__=='MyErr'",
    ),
    "a failed assertion that the test expects": (
        "def f(x):\n    assert x>0,'positive'\n    return x",
        "try:\n    f(-1)\n    ok=False\nexcept AssertionError as e: ok=str(e)=='positive'\nassert ok",
    ),
    "an exit that the test expects": (
        "import sys\ndef f(): sys.exit(3)",
        "try:\n    f()\n    assert False\nexcept SystemExit as e: assert e.code==3",
    ),
    "an OSError's number": (
        "def f(): raise OSError(2,'no such')",
        "try:\n    f()\nexcept FileNotFoundError as e: assert e.errno==2\nelse: assert False",
    ),
    "a UnicodeDecodeError's start": (
        "def f(b): return b.decode('utf8')",
        "try:\n    f(b'\\xff')\n    assert False\nexcept UnicodeDecodeError as e: assert e.start==0",
    ),
    "yield from": (
        "def f(): yield from [1,2,3]",
        "assert list(f())==[1,2,3]\nfor a,b in zip(f(),[1,2,3]): assert a==b\na,*b=f()\nassert b==[2,3]",
    ),
    "a generator that fails late": (
        "def f():\n    yield 1\n    raise ValueError('x')",
        "g=f()\nassert next(g)==1\ntry:\n    next(g)\n    assert False\nexcept ValueError: pass",
    ),
    "a generator's value": (
        "def f():\n    x=yield 1\n    return x",
        "g=f()\nnext(g)\ntry: g.send(5)\nexcept StopIteration as s: assert s.value==5\nelse: assert False",
    ),
    "a generator of lists": (
        "def f(n):\n    for i in range(n): yield [i]",
        "assert list(f(20))==[[i] for i in range(20)]",
    ),
    "an iterable object": (
        "class It:\n    def __init__(s,n): s.n=n\n    def __iter__(s):\n"
        "        for i in range(s.n): yield i\ndef f(n): return It(n)",
        "assert list(f(3))==[0,1,2] and sum(f(4))==6 and 2 in f(3) and max(f(3))==2",
    ),
    "a sequence object": (
        "class V:\n    def __init__(s,d): s.d=d\n    def __len__(s): return len(s.d)\n"
        "    def __getitem__(s,i): return s.d[i]\ndef f(d): return V(d)",
        "v=f([1,2,3])\nassert len(v)==3 and v[0]==1 and v[-1]==3 and v[0:2]==[1,2] and list(v)==[1,2,3] and 3 in v",
    ),
    "a cached function's counts": (
        "from functools import lru_cache\n@lru_cache(None)\ndef f(n): return n",
        "f(1)\nf(1)\nassert f.cache_info().hits==1\nf.cache_clear()\nassert f.cache_info().hits==0",
    ),
    "a function's attribute": (
        "def f(x):\n    f.calls+=1\n    return x\nf.calls=0",
        "f(1)\nf(2)\nassert f.calls==2",
    ),
    "a function's name and text": (
        "def f(x):\n    'Doc.'\n    return x",
        "assert f.__name__=='f' and f.__doc__=='Doc.' and callable(f)",
    ),
    "a constant of the program": (
        "X=5\ndef f(): return X",
        "assert X==5 and f()==X",
    ),
    "a function that is called for nothing": (
        "count=0\ndef f():\n    global count\n    count+=1",
        "f()\nassert count==0 or True",
    ),
    "a linked list with a set of nodes": (
        "class Node:\n    def __init__(s,v): s.v=v;s.next=None\nclass LL:\n"
        "    def __init__(s): s.head=None\n    def add(s,v):\n        n=Node(v);n.next=s.head;s.head=n",
        "l=LL()\nl.add(1)\nl.add(2)\nn=l.head\nseen=set()\nvals=[]\nwhile n and n not in seen:\n"
        "    seen.add(n)\n    vals.append(n.v)\n    n=n.next\n"
        "assert vals==[2,1] and l.head is not None and l.head.next.next is None",
    ),
    "calls in a row": (
        "class T:\n    def __init__(s): s.items=[]\n    def add(s,x): s.items.append(x); return s",
        "assert T().add(1).add(2).items==[1,2]",
    ),
    "a class's attribute": (
        "class A:\n    n=0\n    def __init__(s): A.n+=1",
        "A()\nA()\nassert A.n==2",
    ),
    "threads of the test": (
        "import threading\nclass C:\n    def __init__(s): s.n=0;s.l=threading.Lock()\n    def inc(s):\n"
        "        with s.l: s.n+=1",
        "import threading\nc=C()\nts=[threading.Thread(target=c.inc) for _ in range(5)]\n"
        "[t.start() for t in ts]\n[t.join() for t in ts]\nassert c.n==5",
    ),
    "a deep copy": (
        "import copy\nclass C:\n    def __init__(s): s.d=[1]",
        "import copy\nc=C()\nd=copy.deepcopy(c)\nd.d.append(2)\nassert c.d==[1]",
    ),
    "positions and keywords": (
        "def f(*args,**kw): return (args,kw)",
        "assert f(1,*[2],a=3)==((1,2),{'a':3})",
    ),
    "a missing argument": (
        "def f(a,b=2,*,c): return a+b+c",
        "try:\n    f(1)\n    assert False\nexcept TypeError: pass\nassert f(1,c=3)==6",
    ),
    "a data class": (
        "from dataclasses import dataclass\n@dataclass(order=True)\nclass P:\n    x:int=0\n    y:list=None",
        "p=P(1,[2])\nassert p.x==1 and p.y==[2]\np.x=5\nassert p.x==5\nassert repr(p)=='P(x=5, y=[2])'",
    ),
    "functions composed": (
        "def compose(*fs):\n    def h(x):\n        for f in reversed(fs): x=f(x)\n        return x\n    return h",
        "assert compose(lambda x:x+1,lambda x:x*2)(3)==7",
    ),
    "a curried function": (
        "def curry(f):\n    def a(x): return lambda y: f(x,y)\n    return a",
        "assert curry(lambda a,b:a-b)(5)(3)==2",
    ),
    "functions in a list": (
        "def f(x): return lambda: x",
        "fs=[f(i) for i in range(3)]\nassert [g() for g in fs]==[0,1,2]",
    ),
    "an abstract method that is missing": (
        "class Shape:\n    def area(self): raise NotImplementedError\nclass Sq(Shape):\n"
        "    def __init__(s,a): s.a=a\n    def area(s): return s.a**2",
        "assert Sq(3).area()==9\ntry:\n    Shape().area()\n    assert False\nexcept NotImplementedError: pass",
    ),
    "an abstract class": (
        "from abc import ABC,abstractmethod\nclass S(ABC):\n    @abstractmethod\n    def a(self): ...\n"
        "class C(S):\n    def a(self): return 1",
        "try:\n    S()\n    assert False\nexcept TypeError: pass\nassert C().a()==1 and isinstance(C(),S)",
    ),
    "attributes made up": (
        "class C:\n    def __getattr__(s,n): return n.upper()",
        "assert C().foo=='FOO'",
    ),
    "matrices multiplied": (
        "class Matrix:\n    def __init__(s,r): s.r=r\n"
        "    def __mul__(s,o): return Matrix([[sum(a*b for a,b in zip(x,y)) for y in zip(*o.r)] for x in s.r])\n"
        "    def __str__(s): return str(s.r)",
        "assert str(Matrix([[1,2],[3,4]])*Matrix([[1,0],[0,1]]))=='[[1, 2], [3, 4]]'",
    ),
    "objects summed": (
        "class M:\n    def __init__(s,c,cur): s.c=c;s.cur=cur\n"
        "    def __add__(s,o): return M(s.c+o.c,s.cur)\n    def __radd__(s,o): return s if o==0 else s+o",
        "t=sum([M(1,'e'),M(2,'e')])\nassert t.c==3",
    ),
}

UNGRADABLE = {
    "flags": (
        "from enum import Flag,auto\nclass P(Flag):\n    R=auto()\n    W=auto()\ndef f(): return P.R|P.W",
        "assert P.R in f()\nassert f().value==3",
    ),
    "equality of objects": (
        "class P:\n    def __init__(s,x): s.x=x\n    def __eq__(s,o): return s.x==o.x",
        "assert P(1)==P(1)",
    ),
    "order of objects": (
        "class P:\n    def __init__(s,x): s.x=x\n    def __lt__(s,o): return s.x<o.x",
        "assert P(1)<P(2) and P(1).x==1",
    ),
    "objects sorted": (
        "class P:\n    def __init__(s,x): s.x=x\n    def __lt__(s,o): return s.x<o.x",
        "assert [p.x for p in sorted([P(2),P(1)])]==[1,2]",
    ),
}
