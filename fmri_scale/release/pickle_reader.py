"""Reads the pickle inside a PyTorch checkpoint as data: nothing named in it is ever imported, built or called.

A pickle is a program for a stack machine. This is that machine without its hands: opcodes that make numbers, text,
lists and dicts work; the opcodes that call (`REDUCE`, `NEWOBJ`, `BUILD`) are answered from the list in
`pickle_values`; every other opcode or name refuses the file. Sizes are compared with the bytes that are there
before anything is allocated, and what calls may copy has a budget. In: the bytes of `data.pkl`. Out: dicts, lists,
tuples, scalars, text, and for each tensor a `TensorRef`, whose values `torch_file` reads.
"""

import struct
from collections.abc import Callable, Collection
from typing import Any

from fmri_scale.release.pickle_values import (
    CALLS,
    LABELS,
    OBJECTS,
    Fields,
    Named,
    UnsafePickleError,
    dict_key,
    storage,
)

MAX_PICKLE_BYTES = 8 * 2**20
"A pickle without its storages is small: about 200 bytes a tensor. An object costs memory 60 times its opcode."
COPY_BUDGET = MAX_PICKLE_BYTES
"Items and characters that calls may copy in all, so that a short loop of calls cannot fill the memory."


def read_pickle(data: bytes, allow: Collection[str] = ()) -> Any:
    """Return what a checkpoint's pickle holds, without running anything.

    Parameters
    ----------
    data : the whole pickle, protocol 2 to 5.
    allow : further names, as `module.name`, that may appear; they stay labels, never code.

    Raises
    ------
    UnsafePickleError : a name, opcode or size that a checkpoint of weights does not need.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise UnsafePickleError(f"a pickle of {len(data)} bytes, more than the {MAX_PICKLE_BYTES} allowed")
    return _Machine(data, frozenset(allow)).run()


class _Machine:
    def __init__(self, data: bytes, allow: frozenset[str]) -> None:
        self.data = data
        self.allow = allow
        self.at = 0
        self.copied = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        if self.data[:1] != b"\x80":
            raise UnsafePickleError("not a pickle of protocol 2 or later, which is what PyTorch writes")
        while (code := self.take(1)) != b".":
            step = _OPCODES.get(code)
            if step is None:
                raise UnsafePickleError(f"opcode 0x{code.hex()} at byte {self.at - 1}, which no checkpoint needs")
            step(self)
        if len(self.stack) != 1 or self.marks:
            raise UnsafePickleError("a pickle that ends with an unbalanced stack")
        return self.stack[0]

    def take(self, count: int) -> bytes:
        left = len(self.data) - self.at
        if not 0 <= count <= left:
            raise UnsafePickleError(f"{count} bytes claimed at byte {self.at}, where {left} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, form: str) -> str:
        return _decoded(self.take(self.number(form)))

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1024)
        if end < 0:
            raise UnsafePickleError(f"a name without an end at byte {self.at}")
        return _decoded(self.take(end + 1 - self.at)[:-1])

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        if not self.marks:
            raise UnsafePickleError(f"no mark on the stack at byte {self.at}")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type = object) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise UnsafePickleError(f"an empty stack at byte {self.at}")
        if not isinstance(self.stack[-1], kind):
            raise UnsafePickleError(f"items put into something that is no {kind.__name__}, at byte {self.at}")
        return self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise UnsafePickleError(f"memo entry {index}, which was never written, at byte {self.at}")
        self.push(self.memo[index])

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise UnsafePickleError(f"a key without a value at byte {self.at}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[dict_key(key)] = value

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise UnsafePickleError(f"a name that is not text at byte {self.at}")
        full = f"{module}.{name}"
        if full not in CALLS and full not in LABELS and full not in self.allow:
            raise UnsafePickleError(f"the name {full[:200]!r}, which weights do not need")
        self.push(Named(full))

    def call(self) -> None:
        args, callee = self.pop(), self.pop()
        if not (isinstance(callee, Named) and callee.is_class and isinstance(args, tuple)):
            raise UnsafePickleError(f"a call of something that is not a listed name at byte {self.at}")
        self.spend(args)
        if callee.name in CALLS:
            try:
                self.push(CALLS[callee.name](*args))
            except (TypeError, UnicodeEncodeError) as error:
                raise UnsafePickleError(f"{callee.name} with arguments it does not take") from error
        elif callee.name in OBJECTS or callee.name in self.allow:
            self.push(Named(callee.name, is_class=False))
        else:
            raise UnsafePickleError(f"a call of {callee.name}, which is only a label here")

    def build(self) -> None:
        state, target = self.pop(), self.top()
        self.spend((state,))
        if isinstance(target, Fields) and isinstance(state, dict):
            target.update(state)
        elif isinstance(target, dict) and isinstance(state, dict):
            pass  # attributes of an OrderedDict: `_metadata` of a state dict, which carries no weights
        elif not (isinstance(target, Named) and not target.is_class):
            raise UnsafePickleError(f"attributes set on something that has none at byte {self.at}")

    def spend(self, args: tuple[Any, ...]) -> None:
        self.copied += sum(len(a) for a in args if isinstance(a, str | bytes | list | tuple | dict))
        if self.copied > COPY_BUDGET:
            raise UnsafePickleError(f"calls that copy more than {COPY_BUDGET} items")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise UnsafePickleError("text that is not UTF-8") from error


def _frame(machine: _Machine) -> None:
    length, left = machine.number("<Q"), len(machine.data) - machine.at
    if length > left:
        raise UnsafePickleError(f"a frame of {length} bytes where {left} are left")


def _protocol(machine: _Machine) -> None:
    if not 2 <= machine.number("<B") <= 5:
        raise UnsafePickleError("a pickle protocol other than 2 to 5")


def _extend(machine: _Machine) -> None:
    items = machine.pop_marked()
    machine.top(list).extend(items)


def _append(machine: _Machine) -> None:
    item = machine.pop()
    machine.top(list).append(item)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(tuple([machine.pop() for _ in range(count)][::-1]))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


_OPCODES: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": _Machine.pop,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    b"G": lambda m: m.push(m.number(">d")),
    b"X": lambda m: m.push(m.text("<I")),
    b"\x8c": lambda m: m.push(m.text("<B")),
    b"\x8d": lambda m: m.push(m.text("<Q")),
    b"B": lambda m: m.push(m.take(m.number("<I"))),
    b"C": lambda m: m.push(m.take(m.number("<B"))),
    b"\x8e": lambda m: m.push(m.take(m.number("<Q"))),
    b"}": lambda m: m.push({}),
    b"]": lambda m: m.push([]),
    b")": lambda m: m.push(()),
    b"\x8f": lambda m: m.push([]),
    b"\x90": _extend,
    b"\x91": lambda m: m.push(m.pop_marked()),
    b"t": lambda m: m.push(tuple(m.pop_marked())),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"a": _append,
    b"e": _extend,
    b"s": _set_item,
    b"u": lambda m: m.set_items(m.pop_marked()),
    b"q": lambda m: m.remember(m.number("<B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": _stack_global,
    b"R": _Machine.call,
    b"\x81": _Machine.call,
    b"b": _Machine.build,
    b"Q": lambda m: m.push(storage(m.pop())),
}
"The opcodes that are carried out. Sets become lists, so that nothing the file chose is hashed."
