"""The stack machine that a pickle is a program for, with the operations that picklers write for values, and no others.

`load` runs the operations of a stream. It calls nothing but the functions that it is given by name: `names`, from the full name
in the file, as torch._utils._rebuild_tensor_v2, to a function of ours. An object of a class is a `Part`. Whatever is not known is
an InputError, which names it. See pickles.py, which has the names.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, BinaryIO, cast

from diffode.errors import InputError, shown

MOST_OPERATIONS, MOST_OPEN = 200_000, 200  # EDM's largest file has some 60,000 operations; brackets within each other
MOST_LISTED, MOST_LETTERS, MOST_NUMBER = 16, 200, 2**40  # of an argument


@dataclass
class Part:
    """An object of the file: the name of its class, the arguments that it was made with, by name, and its state."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    state: dict[str, Any] = field(default_factory=dict, repr=False)

    def plain(self) -> dict[str, Any]:
        """Its arguments; InputError unless they are texts, numbers and short lists of these.

        A tuple of a tuple twice, of that twice, and so on, is short in a file, and its parts are without end.
        """
        for name, value in self.arguments.items():
            listed = value if isinstance(value, list | tuple) and len(value) <= MOST_LISTED else [value]
            if not all(map(_is_plain, listed)):
                raise InputError(
                    f"{shown(name, 40)} of its {shown(self.name, 40)} is no number, text or short list, but {shown(value, 40)}"
                )
        return dict(self.arguments)

    def module(self, name: str) -> Part:
        """The module of that name within it; InputError if there is none."""
        found = self.named("_modules").get(name)
        if not isinstance(found, Part):
            raise InputError(f"its {shown(self.name)} has no module {name!r}")
        return found

    def named(self, group: str) -> Mapping[str, Any]:
        """Its `_parameters`, `_buffers` or `_modules` by name; InputError for anything else in their place."""
        held = self.state.get(group, {})
        if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
            raise InputError(f"{group} of its {shown(self.name)} is {shown(held)}, where names and values are expected")
        return held


def _is_plain(value: Any) -> bool:
    """Whether it is None, a short text or a number."""
    if isinstance(value, int | float):
        return abs(value) <= MOST_NUMBER or value in (math.inf, -math.inf)
    return value is None or (isinstance(value, str) and len(value) <= MOST_LETTERS)


class Name(str):
    """A name of the list as a value, such as torch.FloatStorage."""


class Stream:
    """What is left of a file, for pickletools: no read is longer, so that no length in the file takes memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.left = file.seek(0, 2)
        self.size = self.left
        file.seek(0)

    def read(self, count: int) -> bytes:
        """The next `count` bytes; InputError if there are fewer."""
        if not 0 <= count <= self.left:
            raise InputError(f"it ends in the middle: {count:,} bytes are announced where {self.left:,} are left")
        self.left -= count
        return self.file.read(count)

    def at(self) -> int:
        """How many bytes have been read."""
        return self.size - self.left

    def move(self, at: int) -> None:
        """Go to a place; InputError beyond the end."""
        if not 0 <= at <= self.size:
            raise InputError(f"it ends in the middle: byte {at:,} is announced where there are {self.size:,}")
        self.file.seek(at)
        self.left = self.size - at

    def readline(self) -> bytes:
        """The bytes to the end of the line."""
        line = self.file.readline(1000)
        self.left -= len(line)
        return line


class Machine:
    """The stack of a pickle, its open brackets and its memo; each method is an operation, which OPERATIONS names."""

    def __init__(self, names: Mapping[str, Callable[..., Any]], stored: Callable[[Any], Any] | None = None) -> None:
        self.names, self.stored = names, stored
        self.stack: list[Any] = []
        self.open: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> list[Any]:
        """The last values of the stack."""
        if count > len(self.stack):
            raise InputError("it takes more values than there are")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found

    def last(self) -> Any:
        """The last value of the stack, which stays there."""
        (found,) = self.take(1)
        self.stack.append(found)
        return found

    def begin(self) -> None:
        """Open a bracket."""
        if len(self.open) == MOST_OPEN:
            raise InputError(f"it is nested more than {MOST_OPEN} times")
        self.open.append(self.stack)
        self.stack = []

    def end(self) -> list[Any]:
        """Close a bracket: what is in it."""
        if not self.open:
            raise InputError("it closes a bracket that is not open")
        found, self.stack = self.stack, self.open.pop()
        return found

    def name(self, module: Any, name: Any) -> None:
        """What a name of the list stands for."""
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else shown((module, name))
        if full not in self.names:
            raise InputError(f"it names {shown(full)}, which is no part of a network, and nothing of a file is run")
        self.stack.append(Name(full))

    def call(self) -> None:
        """Call a function of names with a tuple of arguments, or make an object of a class."""
        function, arguments = self.take(2)
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise InputError(f"it calls {shown(function)} with {shown(arguments)}")
        self.stack.append(self.names[function](*arguments))

    def storage(self) -> None:
        """What a persistent id stands for: torch.save writes those of storages."""
        (stored,) = self.take(1)
        if self.stored is None:
            raise InputError(f"it names {shown(stored)}, which lies elsewhere")
        self.stack.append(self.stored(stored))

    def extend(self, values: list[Any]) -> None:
        """Append to the list below."""
        held = self.last()
        if not isinstance(held, list):
            raise InputError(f"it appends to {shown(held)}")
        held += values

    def fill(self, values: list[Any]) -> None:
        """Put keys and values into the dict below. Keys are no tuples, as the hash of deeply nested ones overflows the stack."""
        held = self.last()
        if not isinstance(held, dict) or len(values) % 2 or not all(isinstance(key, str | int | float) for key in values[::2]):
            raise InputError(f"it puts {shown(values[:1])} and others into {shown(held)}")
        held.update(zip(values[::2], values[1::2], strict=True))

    def build(self) -> None:
        """Give the object below its state; that of dicts and arrays is of no use here."""
        held, state = self.take(2)
        if isinstance(held, Part) and isinstance(state, dict):
            held.state = state
        self.stack.append(held)

    def keep(self, at: int) -> None:
        """Put the last value into the memo."""
        self.memo[at] = self.last()

    def recall(self, at: int) -> None:
        """A value from the memo."""
        if at not in self.memo:
            raise InputError(f"it takes value {at} of its memo, which has {len(self.memo)}")
        self.stack.append(self.memo[at])


def load(stream: Stream, names: Mapping[str, Callable[..., Any]], stored: Callable[[Any], Any] | None = None) -> Any:
    """The value of the pickle that a stream begins with; InputError, or what pickletools raises, if there is none.

    stored: the storage of a persistent id; without it there are none.
    """
    machine, source = Machine(names, stored), cast("IO[bytes]", stream)  # of which genops asks for read and readline alone
    for count, (operation, argument, _) in enumerate(pickletools.genops(source)):
        if operation.name == "STOP":
            (value,) = machine.take(1)
            return value
        if count == MOST_OPERATIONS:
            raise InputError(f"it has more than {MOST_OPERATIONS:,} operations, several times those of any network")
        if operation.name not in OPERATIONS:
            raise InputError(f"its operation {count:,} is {operation.name}, which no network needs")
        OPERATIONS[operation.name](machine, argument)
    raise AssertionError("pickletools ends with STOP")


def _push(machine: Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _pushes(make: Callable[[Machine], Any]) -> Callable[[Machine, Any], None]:
    return lambda machine, _: _push(machine, make(machine))


VALUES = """BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 SHORT_BINSTRING BINBYTES
SHORT_BINBYTES BINBYTES8"""
OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(VALUES.split(), _push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "BINPERSID": lambda machine, _: machine.storage(),
    "NONE": _pushes(lambda _: None),
    "NEWTRUE": _pushes(lambda _: True),
    "NEWFALSE": _pushes(lambda _: False),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), _pushes(lambda _: [])),  # a set is a list here
    "EMPTY_DICT": _pushes(lambda _: {}),
    "EMPTY_TUPLE": _pushes(lambda _: ()),
    "TUPLE1": _pushes(lambda machine: tuple(machine.take(1))),
    "TUPLE2": _pushes(lambda machine: tuple(machine.take(2))),
    "TUPLE3": _pushes(lambda machine: tuple(machine.take(3))),
    "TUPLE": _pushes(lambda machine: tuple(machine.end())),
    "MARK": lambda machine, _: machine.begin(),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.end())),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "SETITEMS": lambda machine, _: machine.fill(machine.end()),
    "SETITEM": lambda machine, _: machine.fill(machine.take(2)),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.take(2)),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: machine.call()),
    "BUILD": lambda machine, _: machine.build(),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, argument: machine.keep(argument)),
    "MEMOIZE": lambda machine, _: machine.keep(len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, argument: machine.recall(argument)),
}
