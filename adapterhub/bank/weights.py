"""The tensors of an adapter's file as views of one piece of memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

from adapterhub.errors import MalformedTensorFile, RefusedAdapter, shown
from adapterhub.loader.contents import DTYPES
from adapterhub.tensorfile import TensorFile, TensorSpec

_MUCH_UNUSED = 0.1


class FileMemory:
    """The bytes of a checked file: mapped, or read once.

    `may_map`: nobody cuts the file short, which would kill a process that has it mapped. The files of the store are
    such: read-only, and never written again. A mapping costs nothing until it is used, is shared between processes,
    and stays valid when the file is deleted.

    Raises:
        MalformedTensorFile: the file is not what its header said any more.
    """

    def __init__(self, header: TensorFile, *, may_map: bool) -> None:
        self._header = header
        self.is_mapped = may_map
        try:
            with header.path.open("rb", buffering=0) as stream:
                if may_map:
                    # writable, as torch wants it, but never written back
                    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
                    self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)
                    self._origin = 0
                else:
                    self._bytes = torch.empty(header.size_bytes - header.data_start, dtype=torch.uint8)
                    self._origin = header.data_start
                    stream.seek(header.data_start)
                    view, done = self._bytes.numpy().data, 0
                    while done < len(view) and (count := stream.readinto(view[done:])):
                        done += count
                    self._refuse_short(done + header.data_start)
        except (OSError, ValueError) as error:
            raise MalformedTensorFile(str(header.path), f"cannot be read: {shown(str(error))}") from None
        if may_map:
            self._refuse_short(len(self._bytes))

    def tensor(self, spec: TensorSpec, label: str) -> Tensor:
        """One tensor, without a copy where its place allows it.

        Raises:
            RefusedAdapter: a dtype that torch does not have.
        """
        dtype = DTYPES.get(spec.dtype)
        if dtype is None:
            found = ("E_DTYPE", f"`{shown(spec.name)}` is stored as {shown(spec.dtype)}")
            raise RefusedAdapter(f"`{shown(label)}` cannot be read", [found])
        room = self._bytes[spec.start - self._origin : spec.end - self._origin]
        if room.data_ptr() % dtype.itemsize:
            room = room.clone()
        return room.view(dtype).reshape(spec.shape)

    def is_wasteful(self, used: Iterable[TensorSpec]) -> bool:
        """Whether views of `used` alone would keep much memory that nobody needs."""
        size = self._header.size_bytes - self._header.data_start
        return not self.is_mapped and sum(spec.size_bytes for spec in used) < (1 - _MUCH_UNUSED) * size

    def _refuse_short(self, size_bytes: int) -> None:
        if size_bytes != self._header.size_bytes:
            raise MalformedTensorFile(str(self._header.path), "has become shorter since its header was read")
