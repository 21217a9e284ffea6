"""What lies around a checkpoint's values: the ZIP and the pickle, checked before torch reads any of it. No torch.

torch reads compressed entries (a small file that fills the memory), takes sizes out of the pickle on trust, and lets
a pickle name more than a checkpoint needs. So the file is held to the one form that `torch.save` writes: entries that
are stored as they are and fill the file without a gap, and a pickle of plain values in which each tensor is dense and
owns the bytes of one entry.
"""

import contextlib
import io
import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlops.errors import MlopsError, one_line
from mlops.files import check_regular

# torch reads only files whose entries all lie in one folder; it names it "archive" when it writes to an open file.
METADATA = "archive/metadata.json"
_PICKLE, _BYTEORDER = "archive/data.pkl", "archive/byteorder"
_ENTRY = re.compile(
    r"archive/(?:data\.pkl|metadata\.json|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id|data/(?:0|[1-9]\d{0,8}))"
)
_NEEDED = (METADATA, _PICKLE, _BYTEORDER, "archive/version")
# The longest that are read; the sizes of weights are bounded by the file's own.
_MAX_METADATA_BYTES = _MAX_PICKLE_BYTES = 64 * 1024**2
_MAX_OTHER_BYTES = 1024
_MOST_AXES = 16

_LOCAL, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s4H2LH")
_END_64, _LOCATOR_64 = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
# Sizes follow the bytes (3), names are UTF-8 (11). Any other, such as encryption (0), is not torch's nor ours.
_FLAGS = 1 << 3 | 1 << 11
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, ValueError, IndexError, OverflowError),
    *(NotImplementedError, RuntimeError, MemoryError),
)

# What `torch.save` writes of plain values and tensors. Nothing that builds an object by its class, or sets its state.
_OPCODE = re.compile(
    r"PROTO|STOP|MARK|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT|BINUNICODE|EMPTY_(?:DICT|LIST|TUPLE)|TUPLE[123]?"
    r"|APPENDS?|SETITEMS?|(?:LONG_)?BIN(?:PUT|GET)|GLOBAL|REDUCE|BINPERSID"
)
# Bytes of a value, by the name that a pickle has for its type and by torch's.
STORAGES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "ComplexDoubleStorage": ("complex128", 16),
    "ComplexFloatStorage": ("complex64", 8),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}


@dataclass(frozen=True)
class Envelope:
    """A file whose ZIP is in order: the open file, the two texts in it, and the bytes of each `data/<n>` by n."""

    file: BinaryIO
    metadata: bytes
    pickled: bytes
    sizes: Mapping[str, int]


class Described(NamedTuple):
    """A tensor as the pickle describes it, without its values; the fields are `_rebuild_tensor_v2`'s."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    requires_grad: Any
    hooks: Any


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Envelope]:
    """Open a checkpoint after a look at its ZIP.

    Raises:
        MlopsError: it is missing, cannot be read, or is not a ZIP as checkpoints are.
    """
    try:
        check_regular(path, str(path))
        if path.is_dir():
            raise MlopsError(f"{path}: is a folder, not a checkpoint; name the file in it")
        if path.suffix.lower() == ".onnx" and path.exists():
            raise MlopsError(f"{path}: is a model of `mlops export`, not a checkpoint; `mlops predict` takes it")
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MlopsError(f"{path}: no such file; train first (`invoke train`) or name another checkpoint") from error
    except (OSError, ValueError) as error:
        raise MlopsError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or one_line(error)}") from error
    with file:
        yield _look_into(file, path)


def is_ours(path: Path) -> bool:
    """Whether a file looks like a checkpoint of this project; `opened` says whether it is."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return METADATA in archive.namelist()
    except (OSError, *_UNREADABLE):
        return False


def check_stored(path: Path, where: str) -> None:
    """Refuse a file of plain weights whose ZIP, if it is one, holds compressed entries: torch would unpack them.

    `where` begins the problem.

    Raises:
        MlopsError: it does.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (OSError, *_UNREADABLE):
        return  # no ZIP: the reader of the weights says what it is
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > entry.compress_size for entry in entries):
        raise MlopsError(f"{where}: is compressed, which torch.save never does; save it anew where it was made")


def _look_into(file: BinaryIO, path: Path) -> Envelope:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if METADATA not in {entry.orig_filename for entry in entries}:
                raise MlopsError(f"{path}: is not a checkpoint of this project (no metadata.json in it)")
            if problem := _entries_problem(entries) or _layout_problem(file, entries):
                raise MlopsError(f"{path}: is not a checkpoint as this project writes them: {problem}")
            if archive.read(_BYTEORDER) != b"little":
                raise MlopsError(f"{path}: holds numbers in another byte order than little-endian")
            sizes = {e.filename.removeprefix("archive/data/"): e.file_size for e in entries if "/data/" in e.filename}
            return Envelope(file, archive.read(METADATA), archive.read(_PICKLE), sizes)
    except OSError as error:
        raise MlopsError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
    except _UNREADABLE as error:
        raise MlopsError(f"{path}: is not a checkpoint of this project, or is damaged: {one_line(error)}") from error


def _entries_problem(entries: list[zipfile.ZipInfo]) -> str | None:
    """What is wrong with the list of entries, before any of them is read."""
    names = [entry.orig_filename for entry in entries]
    limits = {METADATA: _MAX_METADATA_BYTES, _PICKLE: _MAX_PICKLE_BYTES}
    if unknown := [name for name in names if not _ENTRY.fullmatch(name)]:
        return f"its ZIP holds an unknown entry {unknown[0]!r}"
    for entry, name in zip(entries, names, strict=True):
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            return f"its ZIP entry {name} is compressed"
        if entry.flag_bits & ~_FLAGS:
            return f"its ZIP entry {name} is encrypted or otherwise special"
        weights = name.startswith("archive/data/")
        if not weights and entry.file_size > limits.get(name, _MAX_OTHER_BYTES):
            return f"its ZIP entry {name} has {entry.file_size:,} bytes"
    if len(set(names)) < len(names):
        return "its ZIP holds an entry twice"
    missing = [name for name in _NEEDED if name not in names]
    return f"its ZIP lacks {', '.join(missing)}" if missing else None


def _layout_problem(file: BinaryIO, entries: list[zipfile.ZipInfo]) -> str | None:
    """Where the entries do not fill the file one after another, each as the list at the end says.

    Another reader than Python's (torch has its own) then finds the same entries, wherever it starts to look.
    """
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name = entry.orig_filename.encode()
        if entry.header_offset != end:
            return "its ZIP entries overlap, or something lies between them"
        signature, _, flags, method, _, _, _, packed, size, name_length, extra_length = _read(file, end, _LOCAL)
        own = (0, 0) if flags & 1 << 3 else (entry.file_size, entry.file_size)
        large = (0xFFFFFFFF, 0xFFFFFFFF)  # the sizes are then in the extra field
        right = (b"PK\3\4", entry.flag_bits, zipfile.ZIP_STORED, len(name))
        if (signature, flags, method, name_length) != right or (packed, size) not in (own, large):
            return f"its ZIP describes {entry.orig_filename} in two ways"
        if file.read(name_length) != name:
            return f"its ZIP has two names for {entry.orig_filename}"
        if entry.comment or not _is_filling(entry.extra) or not _is_filling(file.read(extra_length)):
            return f"its ZIP entry {entry.orig_filename} brings more than its bytes"
        end += _LOCAL.size + name_length + extra_length + entry.file_size
        if flags & 1 << 3:
            end += _descriptor(file, end, entry)
    return _end_problem(file, end, len(entries))


def _is_filling(extra: bytes) -> bool:
    """Whether an extra field holds only sizes of 64 bits (1), and what torch fills with to align the bytes (FB)."""
    while extra:
        kind, length = extra[:2], int.from_bytes(extra[2:4], "little")
        held, extra = extra[4 : 4 + length], extra[4 + length :]
        filling = kind == b"FB" and held.strip(b"Z") == b""
        if len(held) < length or not (filling or (kind == b"\1\0" and length <= 28)):
            return False
    return True


def _descriptor(file: BinaryIO, start: int, entry: zipfile.ZipInfo) -> int:
    """The length of what follows an entry's bytes: its sizes once more, in 32 or 64 bits; nothing after no bytes."""
    file.seek(start)
    found = file.read(24)
    for form in ("<4sLLL", "<4sLQQ"):
        with contextlib.suppress(struct.error):
            if found.startswith(struct.pack(form, b"PK\7\10", entry.CRC, entry.file_size, entry.file_size)):
                return struct.calcsize(form)
    return 0


def _end_problem(file: BinaryIO, start: int, count: int) -> str | None:
    """What is wrong with the end of the file, whose list of entries begins at `start`."""
    size = file.seek(0, os.SEEK_END)
    end = size - _END.size
    signature, disk, first_disk, here, entries, length, offset, comment = _read(file, end, _END)
    if (signature, disk, first_disk, comment) != (b"PK\5\6", 0, 0, 0):
        return "something follows its ZIP"
    locator = end - _LOCATOR_64.size
    if locator >= 0 and (found := _read(file, locator, _LOCATOR_64))[0] == b"PK\6\7":
        end = locator - _END_64.size
        if found[1:] != (0, end, 1):
            return "its ZIP ends in two ways"
        signature, rest, _, _, disk, first_disk, here_64, entries_64, length_64, offset_64 = _read(file, end, _END_64)
        if (signature, rest, disk, first_disk) != (b"PK\6\6", _END_64.size - 12, 0, 0):
            return "its ZIP ends in two ways"
        for short, long, most in (
            *((here, here_64, 0xFFFF), (entries, entries_64, 0xFFFF)),
            *((length, length_64, 0xFFFFFFFF), (offset, offset_64, 0xFFFFFFFF)),
        ):
            if short not in (long, most):
                return "its ZIP ends in two ways"
        here, entries, length, offset = here_64, entries_64, length_64, offset_64
    if (here, entries, offset, offset + length) != (count, count, start, end):
        return "its ZIP does not fill the file"
    return None


def _read(file: BinaryIO, start: int, form: struct.Struct) -> tuple[Any, ...]:
    file.seek(start)
    return form.unpack(file.read(form.size))


def unpickle(envelope: Envelope) -> Any:
    """The pickled values, tensors as `Described`. Nothing that the pickle names is called or imported.

    Raises:
        ValueError: the pickle holds what checkpoints do not hold. What is no pickle may raise nearly anything.
    """
    length, last = len(envelope.pickled), 0
    for opcode, argument, position in pickletools.genops(envelope.pickled):
        # A place in the memo that is far from the others would be room for all those in between.
        far = opcode.name == "LONG_BINPUT" and int(argument or 0) > length
        if far or not _OPCODE.fullmatch(opcode.name):
            raise ValueError(f"its pickle holds {opcode.name}")
        last = position or 0
    if last != length - 1:
        raise ValueError("something follows its pickle")
    return _Unpickler(io.BytesIO(envelope.pickled)).load()


def check_tensors(groups: Sequence[Any], sizes: Mapping[str, int]) -> None:
    """Whether `groups` are mappings of names to dense tensors, each of which owns all bytes of one entry, and each
    entry belongs to one of them.

    Args:
        groups: `Described` by name.
        sizes: bytes of `data/<n>` by n.

    Raises:
        ValueError: naming the first that is not.
    """
    taken = set[str]()
    for group in groups:
        if type(group) is not dict:
            raise ValueError("its weights have no names")
        for name, tensor in group.items():
            key = _owned(tensor, sizes)
            if type(name) is not str or key is None or key in taken:
                raise ValueError(f"its weight {name!r} is not a dense tensor with bytes of its own")
            taken.add(key)
    if len(taken) != len(sizes):
        raise ValueError("it holds weights without a name")


def is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a tensor's values lie one beside the other, in whatever order of the axes."""
    if 0 in shape:
        return True
    step = 1
    for distance, side in sorted(zip(stride, shape, strict=True)):
        if side != 1 and distance != step:
            return False
        step *= side
    return True


def _owned(tensor: Any, sizes: Mapping[str, int]) -> str | None:
    """The n of the entry `data/<n>` whose bytes are this tensor's, all of them and no others."""
    if type(tensor) is not Described or type(tensor.storage) is not _Storage:
        return None
    kind, key, numel = tensor.storage
    shape, stride = tensor.shape, tensor.stride
    if type(shape) is not tuple or type(stride) is not tuple or len(shape) != len(stride) or len(shape) > _MOST_AXES:
        return None
    if not all(type(number) is int and 0 <= number < 2**63 for number in (numel, tensor.offset, *shape, *stride)):
        return None
    plain = (tensor.offset, tensor.requires_grad, tensor.hooks) == (0, False, {})
    whole = math.prod(shape) == numel and sizes.get(key) == numel * kind[1]
    return str(key) if plain and whole and is_dense(shape, stride) else None


class _Storage(NamedTuple):
    kind: tuple[str, int]
    key: str
    numel: Any


class _Unpickler(pickle.Unpickler):
    """Knows three kinds of names, and what it gives for them does nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Described
        if (module, name) == ("collections", "OrderedDict"):
            return _no_hooks
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise ValueError(f"its pickle names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        word, kind, key, location, numel = pid
        if (word, location) != ("storage", "cpu") or type(key) is not str or kind not in STORAGES.values():
            raise ValueError("its pickle holds what is no tensor on the CPU")
        return _Storage(kind, key, numel)


def _no_hooks() -> dict[str, Any]:
    return {}
