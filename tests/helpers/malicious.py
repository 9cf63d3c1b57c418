"""Checkpoint files that try to run code, to fill the memory, or to lie about what they hold.

`live` pickles do run code under the standard unpickler (a test proves it): each makes the file named by its canary.
`dead` files attack in other ways, or would need a network or a registry to do harm.
"""

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

GOOD_STORAGES = {"0": struct.pack("<4f", 1, 2, 3, 4)}


class Call:
    """Pickles as a call of `function(*args)`, made by whoever reads it."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args


class Name:
    """Pickles as a global that need not exist here."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Pickler(pickle._Pickler):  # the Python form: its opcodes can be written by hand
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)


def dump(value: Any, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol).dump(value)
    return out.getvalue()


def torch_zip(data: bytes, storages: dict[str, bytes] = GOOD_STORAGES, **extra: bytes) -> bytes:
    """Return the bytes of an archive as torch.save writes it, around a pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", b"3\n")
        for name, content in extra.items():
            archive.writestr(f"archive/{name}", content)
    return out.getvalue()


def _touch(path: str) -> str:
    return f"touch '{path}'"


def _open(path: str) -> str:
    return f"open({path!r}, 'w').close()"


def _getattr(obj: Any, name: str) -> Call:
    return Call(Name("builtins", "getattr"), obj, name)


def _module(name: str) -> Call:
    return Call(Name("importlib", "import_module"), name)


def _storage_pid(
    kind: bytes = b"ctorch\nFloatStorage\n", count: bytes = b"K\x04", key: bytes = b"X\x01\x00\x00\x000"
) -> bytes:
    return b"(X\x07\x00\x00\x00storage" + kind + key + b"X\x03\x00\x00\x00cpu" + count + b"tQ"


def _tensor(shape: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85", offset: bytes = b"K\x00", **pid: bytes) -> bytes:
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + _storage_pid(**pid)
        + offset
        + shape
        + stride
        + b"\x89"
        + hooks
        + b"tR"
    )


def _state(tensor: bytes) -> bytes:
    """A pickle {"state_dict": {"w": tensor}}."""
    return b"\x80\x02}X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00w" + tensor + b"ss."


def live(canary: str) -> dict[str, bytes]:
    """Return pickles by kind; each creates the file `canary` when a standard unpickler reads it."""
    touch, code = _touch(canary), _open(canary)
    inner = dump(Call(Name("os", "system"), touch))
    script = Call(Name("builtins", "compile"), code, "x", "exec")
    raw = touch.encode()
    text = struct.pack("<I", len(raw)) + raw
    return {
        "os_system": dump(Call(Name("os", "system"), touch)),
        "posix_system": dump(Call(Name("posix", "system"), touch)),
        "protocol_4_stack_global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93X" + text + b"\x85R.",
        "os_popen": dump(Call(Name("subprocess", "getoutput"), touch)),
        "subprocess_popen": dump(Call(Name("subprocess", "check_output"), ["touch", canary])),
        "builtins_eval": dump(Call(Name("builtins", "eval"), code)),
        "builtins_exec": dump(Call(Name("builtins", "exec"), code)),
        "python2_names": dump(Call(Name("__builtin__", "eval"), code)),
        "builtins_open": dump(Call(Name("builtins", "open"), canary, "w")),
        "io_open": dump(Call(Name("io", "open"), canary, "w")),
        "nested_compile_exec": dump(Call(Name("builtins", "exec"), script)),
        "getattr_chain": dump(Call(_getattr(_module("os"), "system"), touch)),
        "import_by_dunder": dump(Call(_getattr(Call(Name("builtins", "__import__"), "os"), "system"), touch)),
        "methodcaller": dump(Call(Call(Name("operator", "methodcaller"), "system", touch), _module("os"))),
        "attrgetter": dump(Call(Call(Call(Name("operator", "attrgetter"), "system"), _module("os")), touch)),
        "partial": dump(Call(Call(Name("functools", "partial"), Name("os", "system"), touch))),
        "map_in_list": dump(
            Call(Name("builtins", "list"), Call(Name("builtins", "map"), Name("os", "system"), [touch]))
        ),
        "reduce": dump(Call(Name("functools", "reduce"), Name("builtins", "open"), [canary, "w"])),
        "runpy": dump(Call(Name("runpy", "_run_code"), script, {})),
        "timeit": dump(Call(Name("timeit", "timeit"), code, "pass", Name("time", "time"), 1)),
        "cprofile": dump(Call(Name("cProfile", "run"), code)),
        "numpy_runstring": dump(Call(Name("numpy.testing._private.utils", "runstring"), code, {})),
        "ctypes": dump(Call(_getattr(Call(Name("ctypes", "CDLL"), None), "system"), raw)),
        "function_from_code": dump(Call(Call(Name("types", "FunctionType"), script, {}))),
        "pathlib_touch": dump(Call(_getattr(Call(Name("pathlib", "Path"), canary), "touch"))),
        "shutil_copy": dump(Call(Name("shutil", "copyfile"), "/dev/null", canary)),
        "pickle_in_pickle": dump(Call(Name("pickle", "loads"), inner)),
        "logging_handler": dump(Call(Name("logging", "FileHandler"), canary)),
        "sqlite": dump(Call(_getattr(Call(Name("sqlite3", "connect"), canary), "execute"), "create table t (x)")),
        "tarfile": dump(Call(Name("tarfile", "open"), canary, "w")),
        "memmap": dump(Call(Name("numpy", "memmap"), canary, "uint8", "w+", 0, (1,))),
        "torch_load_from_bytes": dump(Call(Name("torch.storage", "_load_from_bytes"), torch_zip(inner))),
        "torch_rebuild_from_type": dump(
            Call(
                Name("torch._tensor", "_rebuild_from_type_v2"),
                Name("os", "system"),
                Name("builtins", "int"),
                (touch,),
                None,
            )
        ),
        "torch_save": dump(Call(Name("torch", "save"), [1], canary)),
        "dotted_name_through_torch": b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93X" + text + b"\x85R.",
        "inst_opcode": b"\x80\x02(X" + text + b"iposix\nsystem\n.",
        "obj_opcode": b"\x80\x02(cposix\nsystem\nX" + text + b"o.",
        "hidden_behind_good_weights": b"\x80\x02}(X\x0a\x00\x00\x00state_dict}X\x01\x00\x00\x00w"
        + _tensor()
        + b"sX\x05\x00\x00\x00epochcposix\nsystem\nX"
        + text
        + b"\x85Ru.",
        "in_backward_hooks": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + _storage_pid()
        + b"K\x00K\x04\x85K\x01\x85\x89cposix\nsystem\nX"
        + text
        + b"\x85RtR.",
        "in_a_persistent_id": b"\x80\x02(X\x07\x00\x00\x00storagecposix\nsystem\nX" + text + b"\x85RK\x00tQ.",
        "popped_unseen": b"\x80\x02cposix\nsystem\nX" + text + b"\x85R0}.",
        "as_a_dict_key": b"\x80\x02}cposix\nsystem\nX" + text + b"\x85RNs.",
    }


def dead() -> dict[str, bytes]:
    """Return whole files by kind that attack by size, by structure or by what they name."""
    huge = struct.pack("<Q", 2**62)
    deep = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns."
    doubling = b"\x80\x02}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 100 + b"h\x00Ns."
    good = dump({"state_dict": {}})
    names = {
        "network_urlopen": Call(Name("urllib.request", "urlopen"), "http://127.0.0.1:9/"),
        "network_socket": Call(Name("socket", "create_connection"), ("127.0.0.1", 9)),
        "web_browser": Call(Name("webbrowser", "open"), "http://127.0.0.1:9/"),
        "rmtree": Call(Name("shutil", "rmtree"), "/nonexistent"),
        "pty": Call(Name("pty", "spawn"), "true"),
        "code_object": Call(Name("marshal", "loads"), b"\xe3"),
        "setattr": Call(Name("builtins", "setattr"), Name("builtins", "int"), "x", 1),
        "sys_exit": Call(Name("sys", "exit"), 1),
        "signal": Call(Name("os", "kill"), 0, 0),
        "environment": Call(Name("os", "putenv"), "A", "B"),
        "whole_module": Call(Name("torch.nn.modules.linear", "Linear"), 4, 4),
        "torch_hub": Call(Name("torch.hub", "load"), "x/y", "z"),
        "torch_compile_extension": Call(Name("torch.utils.cpp_extension", "load_inline"), "x", "int f();"),
        "torch_load_library": Call(Name("torch._ops", "load_library"), "/nonexistent.so"),
        "torch_script": Call(Name("torch.jit", "load"), "/nonexistent"),
        "torch_wrapper_subclass": Call(Name("torch._utils", "_rebuild_wrapper_subclass"), Name("builtins", "int")),
        "called_storage_class": Call(Name("torch", "FloatStorage"), 2**40),
        "called_builtin_type": Call(Name("builtins", "str"), 1),
        "attribute_of_a_listed_class": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
        "state_on_a_class": b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        "keyword_construction": b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93)}\x92.",
        "extension_registry": b"\x80\x02\x82\x01.",
        "text_persistent_id": b"\x80\x02Psystem\n.",
        "eval_string_opcode": b"\x80\x02S'a'\n.",
        "protocol_0": b"cposix\nsystem\n(S'true'\ntR.",
        "buffers": b"\x80\x05\x97.",
        "persistent_id_of_another_kind": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "storage_of_a_listed_class": _state(_tensor(kind=b"ccollections\nOrderedDict\n")),
        "storage_named_as_a_path": _state(_tensor(key=b"X\x04\x00\x00\x00../0")),
        "huge_frame": b"\x80\x04\x95" + huge + b"N.",
        "huge_text": b"\x80\x04\x8d" + huge + b".",
        "huge_bytes": b"\x80\x04\x8e" + huge + b".",
        "huge_bytearray": b"\x80\x05\x96" + huge + b".",
        "huge_integer": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "pickle_too_large": b"\x80\x02" + b"N0" * (5 * 2**20) + b"N.",
        "path_that_doubles": b"\x80\x02X\x08\x00\x00\x00aaaaaaaaq\x00"
        + b"cpathlib\nPosixPath\nh\x00h\x00\x86Rq\x00" * 60
        + b".",
        "set_copied_for_ever": b"\x80\x02]("
        + b"N" * 100_000
        + b"eq\x00]"
        + b"cbuiltins\nset\nh\x00\x85Ra" * 10_000
        + b".",
        "deep_tuple_as_key": deep,
        "doubling_tuple_as_key": doubling,
        "colliding_integer_keys": b"\x80\x02}\x8a\x09" + (2**65 - 16).to_bytes(9, "little") + b"Ns.",
        "tensor_larger_than_storage": _state(_tensor(shape=b"M\xff\xff\x85")),
        "tensor_past_the_end": _state(_tensor(offset=b"K\x03", shape=b"K\x02\x85")),
        "tensor_expanded_to_a_petabyte": _state(
            _tensor(shape=b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", stride=b"K\x00\x85")
        ),
        "tensor_of_negative_offset": _state(_tensor(offset=b"J\xff\xff\xff\xff")),
        "tensor_of_negative_stride": _state(_tensor(stride=b"J\xff\xff\xff\xff\x85")),
        "tensor_of_100_dimensions": _state(
            _tensor(shape=b"(" + b"K\x01" * 100 + b"t", stride=b"(" + b"K\x01" * 100 + b"t")
        ),
        "storage_claims_terabytes": _state(_tensor(count=b"\x8a\x06\x00\x00\x00\x00\x00\x10")),
        "storage_of_negative_size": _state(_tensor(count=b"J\xff\xff\xff\xff")),
        "storage_smaller_than_claimed": _state(_tensor(count=b"M\x00\x04")),
        "storage_missing": _state(_tensor(key=b"X\x01\x00\x00\x007")),
        "one_storage_many_times": b"\x80\x02}X\x0a\x00\x00\x00state_dict}("
        + b"".join(
            b"X\x03\x00\x00\x00%03d" % n + (_tensor(count=b"J\x00\x10\x00\x00", shape=b"M\x00\x10\x85"))
            for n in range(500)
        )
        + b"us.",
        "stack_underflow": b"\x80\x02R.",
        "memo_never_written": b"\x80\x02h\x05.",
        "no_stop": b"\x80\x02}",
        "items_into_a_tuple": b"\x80\x02)Na.",
        "text_not_utf8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    }
    files = {
        name: torch_zip(_pickle(value), {"0": b"\0" * 16384} if name == "one_storage_many_times" else GOOD_STORAGES)
        for name, value in names.items()
    }
    return files | _zips(good)


def _pickle(value: Any) -> bytes:
    return value if isinstance(value, bytes) else dump(value)


def _zips(good: bytes) -> dict[str, bytes]:
    whole = torch_zip(good)
    entry = whole.index(b"PK\x01\x02")
    return {
        "zip_bomb": _written(lambda z: z.writestr("a/data.pkl", b"N" * 50_000_000, zipfile.ZIP_DEFLATED, 9)),
        "zip_name_twice": _written(lambda z: [z.writestr("a/data.pkl", good) for _ in range(2)]),
        "zip_two_pickles": _written(lambda z: [z.writestr(f"{n}/data.pkl", good) for n in "ab"]),
        "zip_no_pickle": _written(lambda z: z.writestr("a/version", b"3")),
        "zip_path_upwards": _written(lambda z: [z.writestr("a/data.pkl", good), z.writestr("../evil", b"x")]),
        "zip_absolute_path": _written(lambda z: [z.writestr("a/data.pkl", good), z.writestr("/absolute/evil", b"x")]),
        "zip_second_folder": _written(lambda z: [z.writestr("a/data.pkl", good), z.writestr("b/data/0", b"x")]),
        "zip_torchscript": torch_zip(good, **{"constants.pkl": good, "code/x.py": b"import os"}),
        "zip_encrypted": whole[: entry + 8] + b"\x01" + whole[entry + 9 :],
        "zip_other_local_name": whole.replace(b"archive/data.pkl", b"archive/evil.pkl", 1),
        "zip_overlapping_members": _overlapping(good),
        "zip_member_beyond_the_end": whole[: entry + 42] + struct.pack("<I", 2**31) + whole[entry + 46 :],
        "zip_member_of_4_gb": whole[: entry + 20] + struct.pack("<2I", 2**32 - 2, 2**32 - 2) + whole[entry + 28 :],
        "zip_flipped_byte": whole.replace(good, good[:-3] + b"}" + good[-2:], 1),
        "zip_trailing_bytes": whole + b"x",
        "zip_cut_short": whole[:-40],
        "zip_directory_of_65535": whole[:-12] + struct.pack("<H", 65535) + whole[-10:],
        "zip_directory_of_4_gb": whole[:-10] + struct.pack("<I", 2**32 - 2) + whole[-6:],
        "zip_big_endian": whole.replace(b"little", b"bigbig").replace(*_crcs(b"little", b"bigbig")),
        "not_a_zip_empty": b"",
        "not_a_zip_text": b"not a checkpoint at all\n" * 10,
        "not_a_zip_bare_pickle": dump(Call(Name("os", "system"), "true")),
        "not_a_zip_tar": b"sys_info\0" + b"\0" * 2000,
        "not_a_zip_gzip": b"\x1f\x8b\x08" + b"\0" * 100,
    }


def _crcs(before: bytes, after: bytes) -> tuple[bytes, bytes]:
    return struct.pack("<I", zipfile.crc32(before)), struct.pack("<I", zipfile.crc32(after))


def _written(fill: Callable[[zipfile.ZipFile], Any]) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        warnings.simplefilter("ignore", UserWarning)  # zipfile warns of the name written twice on purpose
        fill(archive)
    return out.getvalue()


def _overlapping(good: bytes) -> bytes:
    """An archive whose directory says that a member lies inside another one, with a fitting local header there."""

    def pack(content: bytes) -> bytes:
        return _written(
            lambda z: [z.writestr(f"a/{n}", c) for n, c in (("data.pkl", good), ("x", content), ("y", b"z"))]
        )

    first = pack(b"")
    record = first[first.index(b"a/y") - 30 : first.index(b"PK\x01\x02")]
    whole = pack(record)
    entry = whole.rindex(b"PK\x01\x02")
    inside = whole.index(record)
    return whole[: entry + 42] + struct.pack("<I", inside) + whole[entry + 46 :]
