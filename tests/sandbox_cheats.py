"""Programs for the sandbox: those that pass tests without solving them, if they can, and honest ones that must pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cheat:
    """Code that does not solve its task, and the tests that it must not pass."""

    name: str
    code: str
    tests: tuple[str, ...] = ("assert f(1) == 2", "assert f(5) == 6")
    setup: str = ""


CHEATS = [
    Cheat("replace exec", "import builtins\nbuiltins.exec = lambda *a, **k: None"),
    Cheat(
        "replace compile",
        "import builtins\nold = compile\nbuiltins.compile = lambda *a, **k: old('pass', '<test>', 'exec')",
    ),
    Cheat("replace AssertionError", "import builtins\nbuiltins.AssertionError = type('A', (), {})\nf = lambda x: 0"),
    Cheat(
        "wrap json.dumps",
        "import json\nold = json.dumps\njson.dumps = lambda value, **k: old({'value': 2, 'num_passed': 2, 'ready': True})",
    ),
    Cheat(
        "replace os.write",
        "import os\nold = os.write\nos.write = lambda fd, data: old(fd, data.replace(b'F', b'P'))\nf = lambda x: 0",
    ),
    Cheat(
        "walk the frames to the job",
        "import sys\nframe = sys._getframe()\nwhile frame:\n    for value in list(frame.f_locals.values()):\n        if isinstance(value, dict) and 'tests' in value: value['tests'] = ['pass'] * len(value['tests'])\n        if isinstance(value, list) and value and 'assert' in str(value[0]): value[:] = ['pass'] * len(value)\n    frame = frame.f_back",
    ),
    Cheat(
        "find the tests by gc",
        "import gc\nfor o in gc.get_objects():\n    if isinstance(o, list) and o and isinstance(o[0], str) and 'assert' in o[0]: o[:] = ['pass'] * len(o)\n    if isinstance(o, dict) and 'token' in o: token = o['token']",
    ),
    Cheat(
        "read what is expected out of memory",
        "import gc, re\ndef f(x):\n    for o in gc.get_objects():\n        for part in (o if isinstance(o, list) else o.values() if isinstance(o, dict) else ()):\n            found = re.match(rf'assert f\\({x}\\) == (\\d+)', part) if isinstance(part, str) else None\n            if found: return int(found[1])",
    ),
    Cheat(
        "read what is expected from the job",
        "import sys\ntry: text = open('/proc/self/fd/0').read() + sys.stdin.read()\nexcept Exception: text = ''\nimport re\ndef f(x):\n    found = re.search(rf'assert f\\({x}\\) == (\\d+)', text)\n    return found and int(found[1])",
    ),
    Cheat(
        "read what is expected in the frames",
        "import sys, re\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        found = re.search(rf'assert f\\({x}\\) == (\\d+)', str(frame.f_locals))\n        if found: return int(found[1])\n        frame = frame.f_back",
    ),
    Cheat(
        "read the memory of its neighbours",
        "import os, re\ndef f(x):\n    for name in os.listdir('/proc'):\n        if name.isdigit():\n            found = re.search(rf'assert f\\({x}\\) == (\\d+)'.encode(), open(f'/proc/{name}/mem', 'rb').read(10**6))\n            if found: return int(found[1])",
    ),
    Cheat(
        "an object that equals everything",
        "class Equal:\n    __eq__ = lambda self, other: True\n    __hash__ = lambda self: 0\nf = lambda x: Equal()",
    ),
    Cheat(
        "an int that equals everything",
        "class Equal(int):\n    __eq__ = lambda self, other: True\n    __hash__ = lambda self: 0\nf = lambda x: Equal(0)",
    ),
    Cheat(
        "a text that equals everything",
        "class Equal(str):\n    __eq__ = lambda self, other: True\n    __hash__ = lambda self: 0\nf = lambda x: Equal('')",
        ("assert f(1) == 'one'",),
    ),
    Cheat(
        "a list that equals everything",
        "class Equal(list):\n    __eq__ = lambda self, other: True\nf = lambda x: Equal()",
        ("assert f(1) == [1]", "assert [1] == f(1)"),
    ),
    Cheat(
        "a dict that has everything",
        "class All(dict):\n    __contains__ = __eq__ = lambda self, other: True\n    __getitem__ = lambda self, key: 1\nf = lambda x: All()",
        ("assert 'a' in f(1)", "assert f(1)['a'] == 1"),
    ),
    Cheat(
        "an object that contains everything",
        "class All:\n    __contains__ = lambda self, other: True\nf = lambda x: All()",
        ("assert 2 in f(1)",),
    ),
    Cheat(
        "an object above and below everything",
        "class Any:\n    __lt__ = __gt__ = __le__ = __ge__ = lambda self, other: True\nf = lambda x: Any()",
        ("assert f(1) > 0", "assert 0 < f(1)"),
    ),
    Cheat(
        "an object from which everything subtracts to nothing",
        "class Zero:\n    __sub__ = __rsub__ = __mod__ = __truediv__ = __mul__ = lambda self, other: 0\n    __abs__ = __round__ = lambda self, *a: 0\nf = lambda x: Zero()",
        (
            "assert abs(f(1) - 2.5) < 1e-6",
            "assert abs(2.5 - f(1)) < 1e-6",
            "assert f(1) % 3 == 0",
            "assert not f(1) * 3",
        ),
    ),
    Cheat(
        "objects all the way down",
        "class All:\n    __getattr__ = lambda self, name: self\n    __call__ = __getitem__ = __sub__ = __abs__ = __round__ = lambda self, *a: self\n    __eq__ = __lt__ = __contains__ = lambda self, other: True\n    __hash__ = lambda self: 0\n    __len__ = lambda self: 1\nf = lambda x: All()",
        (
            "assert abs(f(1) - 2.5) < 1e-6",
            "assert f(1)[0] == 2",
            "assert f(1).a.b == 2",
            "assert sorted(f(1)) == [2]",
            "assert len(f(1)) == 2",
        ),
    ),
    Cheat(
        "an object of a pretended class",
        "class Equal:\n    __class__ = int\n    __eq__ = lambda self, other: True\n    __hash__ = lambda self: 0\nf = lambda x: Equal()",
    ),
    Cheat(
        "a metaclass that equals everything",
        "class Meta(type):\n    __eq__ = lambda self, other: True\n    __hash__ = type.__hash__\nclass Equal(metaclass=Meta): pass\nf = lambda x: Equal",
    ),
    Cheat("end with success at once", "raise SystemExit(0)"),
    Cheat("end with success in the test", "def f(x): raise SystemExit(0)"),
    Cheat("end the process with success", "import os\ndef f(x): os._exit(0)"),
    Cheat(
        "write the verdict to every descriptor",
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'limits\\nPP')\n    except OSError: pass\nos._exit(0)",
    ),
    Cheat(
        "answer before it is asked",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{\"value\": true}\\n' * 20)\n    except OSError: pass\nf = lambda x: 0",
    ),
    Cheat(
        "wrap the encoder of values",
        "import sys\nfor module in list(sys.modules.values()):\n    if hasattr(module, 'encode') and hasattr(module, 'Channel'): module.encode = lambda value, keep: ['builtin', 'eval']\nf = lambda x: 0",
    ),
    Cheat(
        "answer with a reference to nothing",
        "import sys\nfor module in list(sys.modules.values()):\n    if hasattr(module, 'OPERATIONS'): module.encode = lambda value, keep: ['ref', None]\nf = lambda x: 0",
    ),
    Cheat(
        "answer with endless requests",
        "import sys\nfor module in list(sys.modules.values()):\n    if hasattr(module, 'Solution'): module.Solution._answer = lambda self, request: {'callback': 0, 'arguments': []}\nf = lambda x: 0",
    ),
    Cheat(
        "its own set",
        "class Equal:\n    __init__ = lambda self, *a: None\n    __eq__ = lambda self, other: True\n    __hash__ = lambda self: 0\nset = sorted = tuple = list = str = round = len = Equal\nf = lambda x: [x]",
        (
            "assert set(f(1)) == set([2])",
            "assert sorted(f(1)) == [2]",
            "assert len(f(1)) == 2",
            "assert str(f(1)) == 'a'",
        ),
    ),
    Cheat(
        "its own isinstance, all and any",
        "isinstance = all = any = abs = lambda *a: 1\nf = lambda x: 9",
        ("assert isinstance(f(1), str)", "assert all([f(1) == 2])", "assert any([f(1) == 2])"),
    ),
    Cheat(
        "its own math",
        "class math:\n    isclose = lambda *a, **k: True\nf = lambda x: 0.0",
        ("assert math.isclose(f(1), 2.5)",),
    ),
    Cheat(
        "its own module in the folder",
        "open('math.py', 'w').write('isclose = lambda *a, **k: True')\nopen('sitecustomize.py', 'w').write('import os; os._exit(0)')\nimport sys\nsys.modules['math'] = type(sys)('math')\nf = lambda x: 0.0",
        ("import math\nassert math.isclose(f(1), 2.5)",),
    ),
    Cheat(
        "empty what the result is compared with",
        "def f(x):\n    x.clear()\n    return x",
        ("x = [3, 1]\nassert f(x) == sorted(x)", "x = {1: 2}\nassert f(x) == dict(x)"),
    ),
    Cheat(
        "empty it by a message of its own",
        "import sys\ndef f(x): return x\nfor module in list(sys.modules.values()):\n    if hasattr(module, 'Solution'):\n        old = module.Solution._answer\n        module.Solution._answer = lambda self, request: old(self, request) if 'name' in request else {'value': ['list', []], 'changed': [[1, ['list', []]]]}",
        ("x = [3, 1]\nassert f(x) == sorted(x)",),
    ),
    Cheat(
        "StopIteration to end what all() looks at",
        "def f(x): raise StopIteration",
        ("assert all(map(lambda x: f(x) == x + 1, [1, 2]))", "assert not list(map(f, [1, 2]))"),
    ),
    Cheat(
        "an error class of its own that ends what all() looks at",
        "class Fine(StopIteration): pass\ndef f(x): raise Fine",
        ("assert all(map(lambda x: f(x) == x + 1, [1, 2]))",),
    ),
    Cheat(
        "replace operator.eq",
        "import operator\noperator.eq = lambda *a: True\nf = lambda x: object()",
        ("assert f(1) == 2", "assert f(1) is True"),
    ),
    Cheat(
        "trace the tests",
        "import sys\ndef trace(frame, event, arg):\n    frame.f_lineno = frame.f_lineno + 1\n    return trace\nsys.settrace(trace)\nf = lambda x: 0",
    ),
    Cheat(
        "a thread that waits for the tests",
        "import threading, time, builtins\ndef patch():\n    while True: builtins.AssertionError = Exception; time.sleep(0.001)\nthreading.Thread(target=patch, daemon=True).start()\nf = lambda x: 0",
    ),
    Cheat("an error that the test takes for success", "class Fine(AssertionError): pass\ndef f(x): raise Fine"),
    Cheat(
        "StopIteration in a loop of the test",
        "def f(x): raise StopIteration",
        ("assert f(1) == 2", "assert [f(1) for _ in range(1)] == [2]"),
    ),
    Cheat(
        "define the tests' own names",
        "expected = 0\nf = lambda x: expected",
        ("expected = 2\nassert f(1) == expected",),
    ),
    Cheat("use what the setup expects", "def f(x): return expected", ("assert f(1) == expected",), "expected = 2"),
]

HONEST = [
    ("an int", "def f(x): return x + 1", "assert f(1) == 2"),
    ("a float", "def f(x): return x / 3", "assert abs(f(1) - 1 / 3) < 1e-12"),
    ("a tuple", "def f(x): return (x, [x], {x: None})", "assert f(1) == (1, [1], {1: None})"),
    ("a set", "def f(x): return {x, (1, 2)}", "assert f(3) == {3, (1, 2)} and set(f(1)) == {1, (1, 2)}"),
    ("bytes and complex", "def f(x): return bytes([x]), complex(x, 1)", "assert f(1) == (b'\\x01', 1 + 1j)"),
    ("a large int", "def f(x): return 10 ** x", "assert f(5000) == 10 ** 5000"),
    (
        "nan and infinity",
        "def f(x): return [float('nan'), float('inf')]",
        "a, b = f(1); assert a != a and b == float('inf')",
    ),
    ("odd text", "def f(x): return x + '\\ud800\\x00\\u2028'", "assert f('a') == 'a\\ud800\\x00\\u2028'"),
    (
        "a named tuple",
        "import collections\nP = collections.namedtuple('P', 'a b')\ndef f(x): return P(x, 2)",
        "p = f(1); assert p == (1, 2) and p.a == 1",
    ),
    (
        "a Counter",
        "from collections import Counter\ndef f(x): return Counter(x)",
        "assert f('aab') == {'a': 2, 'b': 1} and f('aab').most_common(1) == [('a', 2)]",
    ),
    (
        "an OrderedDict",
        "from collections import OrderedDict\ndef f(x): return OrderedDict(x)",
        "assert f({2: 1, 1: 2}) == {1: 2, 2: 1}",
    ),
    ("a deque", "from collections import deque\ndef f(x): return deque(x)", "assert list(f([1, 2])) == [1, 2]"),
    (
        "a Decimal and a Fraction",
        "from decimal import Decimal\nfrom fractions import Fraction\ndef f(x): return [Decimal(x), Fraction(x)]",
        "from fractions import Fraction\nassert f('0.5') == [Fraction(1, 2), 0.5]",
    ),
    (
        "dates",
        "import datetime\ndef f(x): return datetime.date(2020, 1, x) + datetime.timedelta(1)",
        "import datetime\nassert f(1) == datetime.date(2020, 1, 2)",
    ),
    (
        "a generator",
        "def f(x):\n    for i in range(x): yield i",
        "assert list(f(3)) == [0, 1, 2] and 2 in f(3) and next(f(1)) == 0",
    ),
    (
        "map and keys",
        "def f(x): return map(str, x)\ndef g(x): return {x: 1}.keys()",
        "assert list(f([1])) == ['1'] and g(1) == {1: 1}.keys()",
    ),
    ("a range", "def f(x): return range(x)", "assert f(3) == range(3)"),
    ("a type", "def f(x): return type(x)", "assert f(1) is int and f('a') == str"),
    (
        "None and booleans",
        "def f(x): return None if x else x",
        "assert f(1) is None and f(False) is False and not f('')",
    ),
    ("an argument changed in place", "def f(x): x.sort()", "a = [2, 1]; f(a); assert a == [1, 2]"),
    (
        "a function as an argument",
        "def f(x, key): return sorted(x, key=key)",
        "assert f([1, 2], lambda v: -v) == [2, 1] and f(['aa', 'b'], len) == ['b', 'aa']",
    ),
    ("named arguments", "def f(*a, b=1, **c): return a, b, c", "assert f(1, b=2, d=3) == ((1,), 2, {'d': 3})"),
    (
        "an error",
        "class MyError(ValueError): pass\ndef f(x): raise MyError('no ' + x)",
        "try:\n    f('a')\nexcept ValueError as error:\n    assert str(error) == 'no a'\nelse:\n    assert False",
    ),
    (
        "an error of its own",
        "class MyError(Exception): pass\ndef f(x): raise MyError",
        "try:\n    f('a')\nexcept MyError:\n    pass\nelse:\n    assert False",
    ),
    (
        "a class",
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n    def __len__(self): return len(self.items)",
        "s = Stack(); s.push(1); assert len(s) == 1 and s.items == [1] and isinstance(s, Stack)",
    ),
    (
        "objects that add up",
        "class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n    def __eq__(self, o): return self.x == o.x\n    def __repr__(self): return f'V({self.x})'",
        "assert V(1) + V(2) == V(3) and str(V(1)) == 'V(1)' and V(1) != V(2)",
    ),
    (
        "an object times a number",
        "class V:\n    def __init__(self, x): self.x = x\n    def __mul__(self, n): return V(self.x * n)\n    __rmul__ = __mul__\n    def __eq__(self, o): return self.x == o.x",
        "assert V(2) * 3 == V(6) and 3 * V(2) == V(6)",
    ),
    (
        "objects as arguments",
        "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next\ndef f(n): return 0 if n is None else n.v + f(n.next)",
        "n = Node(1); n.next = Node(2); assert f(n) == 3",
    ),
    ("a global that changes", "n = 0\ndef f():\n    global n\n    n += 1", "f(); f(); assert n == 2"),
    ("a builtin's name", "def sum(a, b): return a + b + 1", "assert sum(1, 2) == 4"),
    (
        "math without an import",
        "import math\ndef f(x): return math.pi * x",
        "assert math.isclose(f(1), 3.14159, rel_tol=1e-4)",
    ),
    ("a loop of tests", "def f(x): return x * x", "for i in range(50):\n    assert f(i) == i ** 2"),
    (
        "a check function",
        "def f(x): return x + 1",
        "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3\ncheck(f)",
    ),
    (
        "threads",
        "import threading\ndef f(x):\n    out = []\n    t = threading.Thread(target=out.append, args=(x,)); t.start(); t.join()\n    return out",
        "assert f(1) == [1]",
    ),
    (
        "files in its folder",
        "import os\ndef f(x):\n    with open('a.txt', 'w') as file: file.write(x)\n    os.mkdir('b'); os.rename('a.txt', 'b/a.txt')\n    return open('b/a.txt').read()",
        "assert f('hi') == 'hi'",
    ),
    (
        "most of the standard library",
        "import abc, array, bisect, calendar, collections, copy, csv, dataclasses, datetime, decimal, enum, fractions, functools, hashlib, heapq, io, itertools, json, math, operator, queue, random, re, statistics, string, struct, sys, textwrap, time, typing, unicodedata, uuid, zlib\ndef f(x): return random.Random(x).random(), hashlib.md5(b'a').hexdigest()",
        "assert len(f(1)) == 2",
    ),
    ("output", "def f(x):\n    print('x' * 10**6)\n    return x", "assert f(1) == 1"),
]
"""Programs that solve their task, in every form that results and tests take: (name, code, test)."""
