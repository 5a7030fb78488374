"""Reads the weights in a .pth file without PyTorch, and without running anything that the file asks for.

Both of PyTorch's formats: the zip archive (since 1.6) and the row of pickles before it.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C  # opens a file of the older format
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


class _Storage(NamedTuple):
    """The numbers that one or more tensors look at."""

    dtype: np.dtype
    key: str


class _Tensor(NamedTuple):
    """A tensor whose numbers are read later."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, data: bytes) -> np.ndarray:
        """Its numbers, from the bytes of its storage."""
        values = np.frombuffer(data, self.storage.dtype)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        if min(self.shape, default=1) < 1:
            return np.zeros(self.shape, self.storage.dtype)
        if not 0 <= last < len(values) or min(self.strides, default=0) < 0:
            raise ValueError("a tensor reaches beyond its numbers")
        strides = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries and tensors, and refuses every other class."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.item_sizes: dict[str, int] = {}  # bytes of one number of each storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return lambda storage, offset, shape, strides, *rest: _Tensor(storage, offset, tuple(shape), tuple(strides))
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda tensor, *rest: tensor
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, identity: tuple) -> _Storage:
        kind, dtype, key = identity[:3]
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"it asks for a {kind}")
        self.item_sizes[str(key)] = dtype.itemsize
        return _Storage(dtype, str(key))


def read_torch_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Arrays by name; ValueError when the file is damaged or holds anything but weights."""
    try:
        state, storages = _read_zip(Path(path)) if is_zipfile(path) else _read_pickles(Path(path))
        tensors = {name: value for name, value in dict(state).items() if isinstance(value, _Tensor)}
        return {name: tensor.read(storages[tensor.storage.key]) for name, tensor in tensors.items()}
    except (pickle.UnpicklingError, BadZipFile, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not readable as weights of PyTorch ({error})") from error


def _read_zip(path: Path) -> tuple[Any, dict[str, bytes]]:
    with ZipFile(path) as archive:
        head = next(name for name in [*archive.namelist(), ""] if name.endswith("data.pkl") or not name)
        if not head:
            raise ValueError("no data.pkl inside")
        folder = head.removesuffix("data.pkl") + "data/"
        state = _Unpickler(archive.open(head)).load()
        names = [name for name in archive.namelist() if name.startswith(folder)]
        return state, {name.removeprefix(folder): archive.read(name) for name in names}


def _read_pickles(path: Path) -> tuple[Any, dict[str, bytes]]:
    with path.open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise ValueError("no magic number at its head")
        _Unpickler(file).load()  # version of the format
        _Unpickler(file).load()  # of the system that wrote it
        unpickler = _Unpickler(file)
        state = unpickler.load()
        return state, {str(key): _read_storage(file, unpickler.item_sizes[str(key)]) for key in _Unpickler(file).load()}


def _read_storage(file: BinaryIO, item_size: int) -> bytes:
    count = int.from_bytes(file.read(8), "little")
    data = file.read(count * item_size)
    if len(data) != count * item_size:
        raise EOFError("it is cut off")
    return data
