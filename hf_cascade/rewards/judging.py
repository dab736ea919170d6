"""Source of the two sides of a test with assertions: the program's, which calls its functions, and the judge's.

They run in two sandboxes and share nothing but a pipe each way. The judge runs the assertions; in place of the
program's functions it has stubs, which send name and arguments over and get a plain value back. So what is expected
never is where the program is, values that come back have Python's own types and comparisons, and the verdict is
written by a process that the program cannot reach.

An object that is no plain value stays with the program and can be given back to it. The test can use attributes and
methods of instances that it made itself (`Stack(3).push(1)`), which it knows by their class's capital letter; not of
others that functions return: the program could answer `startswith` with yes.
"""

# Values as JSON: what JSON has not is {"type": its name, "value": ...}.
VALUES = """
import builtins, json, os

# Not `type` itself, and no functions: with `eval`, what a program returns could run in the judge.
TYPES = (object, bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range)
TYPES = {kind.__name__: kind for kind in TYPES}


def encode(value, unknown):
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) < value < 2**63 else {"type": "int", "value": hex(value)}
    if isinstance(value, list):
        return [encode(item, unknown) for item in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {"type": kind.__name__, "value": [encode(item, unknown) for item in value]}
    if isinstance(value, dict):
        items = [[encode(key, unknown), encode(item, unknown)] for key, item in value.items()]
        return {"type": "dict", "value": items}
    if isinstance(value, (bytes, bytearray)):
        return {"type": type(value).__name__, "value": list(value)}
    if isinstance(value, complex):
        return {"type": "complex", "value": [value.real, value.imag]}
    if isinstance(value, range):
        return {"type": "range", "value": [value.start, value.stop, value.step]}
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        return {"type": "type", "value": value.__name__}
    if hasattr(type(value), "__next__"):
        return {"type": "iterator", "value": [encode(item, unknown) for item in value]}
    return unknown(value)


KINDS = {
    "tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict, "bytes": bytes, "bytearray": bytearray,
    "complex": lambda parts: complex(*parts), "range": lambda parts: range(*parts), "iterator": iter,
    "int": lambda text: int(text, 16), "type": TYPES.__getitem__,
    "opaque": lambda place: opaque(place),
}


def decode(value):
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        return KINDS[value["type"]](decode(value["value"]))
    return value


# Both sides talk over what was standard input and output; prints go to standard error.
requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
nothing = os.open(os.devnull, os.O_RDWR)
os.dup2(nothing, 0)
os.dup2(2, 1)


def send(value):
    replies.write(json.dumps(value).encode() + b"\\n")
    replies.flush()
"""

PROGRAM = (
    VALUES
    + """
import program

kept = []  # what the judge knows by its place only
opaque = kept.__getitem__


def keep(value):
    place = next((place for place, known in enumerate(kept) if known is value), len(kept))
    kept[place:] = kept[place:] or [value]
    return {"type": "opaque", "value": place}


for line in requests:
    action, target, *rest = json.loads(line)
    try:
        target = getattr(program, target) if isinstance(target, str) else kept[target]
        rest = [decode(part) for part in rest]
        if action == "call":
            value = target(*rest[0], **rest[1])
        else:
            value = {"get": getattr, "set": setattr}[action](target, *rest)
        send([encode(value, keep), None])
    except BaseException as error:
        send([None, type(error).__name__])
"""
)

JUDGE = (
    VALUES
    + '''
verdicts = os.fdopen(os.dup(2), "w")
os.dup2(nothing, 1)
os.dup2(nothing, 2)
LONGEST = 4_000_000  # bytes of a reply
asked = []


class ProgramError(Exception):
    """What the program raised; also an instance of the builtin error of that name, for tests that expect it."""


class Unjudged(Exception):
    """The test cannot be sent."""


class Opaque:
    """An object that is with the program: it equals itself only."""

    def __init__(self, place):
        object.__setattr__(self, "_place", place)


class Method(Opaque):
    def __call__(self, *args, **kwargs):
        return ask("call", self._place, list(args), kwargs)


class Instance(Opaque):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = ask("get", self._place, name)
        return Method(value._place) if type(value) is Opaque else value

    def __setattr__(self, name, value):
        ask("set", self._place, name, value)


seen = {}  # place -> object


def opaque(place):
    assert type(place) is int
    return seen.setdefault(place, Opaque(place))


def unsendable(value):
    if isinstance(value, Opaque):
        return {"type": "opaque", "value": value._place}
    raise Unjudged(f"value of type {type(value).__name__}")


def ask(action, target, *rest):
    asked.append(action)
    message = [action, target, *(encode(part, unsendable) for part in rest)]
    try:
        send(message)
        value, error = json.loads(requests.readline(LONGEST))
        value = decode(value)
    except Exception as problem:  # the program ended, or sent something else
        raise ProgramError("no answer") from problem
    if error is not None:
        known = getattr(builtins, str(error), None)
        if isinstance(known, type) and issubclass(known, Exception):
            raise type(known.__name__, (ProgramError, known), {})(error)
        raise ProgramError(error)
    return value


def stub(name):
    def call(*args, **kwargs):
        value = ask("call", name, list(args), kwargs)
        if type(value) is Opaque and name[0].isupper():
            value = seen[value._place] = Instance(value._place)
        return value

    return call


with open("test.json") as file:
    task = json.load(file)
names = {"__name__": "test", **{name: stub(name) for name in task["calls"]}}
passed, problem = False, None
try:
    exec(compile(task["setup"], "setup", "exec"), names)
    exec(compile(task["test"], "test", "exec"), names)
    passed = True
except ProgramError:
    pass
except (Unjudged, NameError, ImportError) as error:
    problem = repr(error)
except BaseException as error:
    if not asked:  # otherwise an answer can be the reason
        problem = repr(error)
verdicts.write(json.dumps({"problem": problem} if problem else {"passed": passed}))
verdicts.flush()
os._exit(0)
'''
)
