"""Text files of other encodings as UTF-8."""

from __future__ import annotations

import codecs
import io
import re
from typing import Any, BinaryIO

from factory_agents.errors import ConfigurationError

__all__ = ["HINT", "as_utf8", "check_narrow"]

HINT = "set encoding to the file's, such as cp1252 or utf-16"
_WIDE = (
    ("utf-32", re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff")),
    ("utf-16", re.compile(rb"\xff\xfe|\xfe\xff")),
    ("utf-32-le", re.compile(rb"[^\0]\0\0\0")),
    ("utf-32-be", re.compile(rb"\0\0\0[^\0]")),
    ("utf-16-le", re.compile(rb"[^\0]\0[^\0]\0")),
    ("utf-16-be", re.compile(rb"\0[^\0]\0[^\0]")),
)
"""How texts of several bytes a character begin: with a mark, or with two characters of ASCII."""


def check_narrow(data: bytes, name: str) -> None:
    """Raise ConfigurationError for the beginning of a text that is UTF-16 or UTF-32, where another encoding is expected."""
    for encoding, beginning in _WIDE:
        if beginning.match(data):
            raise ConfigurationError(f"{name}: not utf-8, but {encoding[:6].upper()}: set encoding: {encoding}")


def as_utf8(file: BinaryIO, name: str, encoding: str) -> BinaryIO:
    """The file as UTF-8; reading raises ConfigurationError where it is not in its encoding."""
    if codecs.lookup(encoding).name == "utf-8":
        return file
    stream: Any = _Utf8(file, name, encoding)
    return io.BufferedReader(stream, 1 << 18)


class _Utf8(io.RawIOBase):
    """A file of another encoding, UTF-16 for example, as UTF-8."""

    def __init__(self, file: BinaryIO, name: str, encoding: str) -> None:
        self._file, self._name, self._encoding = file, name, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; raises ConfigurationError where the file is not in this encoding."""
        while not self._ready:
            data = self._file.read(1 << 16)
            try:
                self._ready = memoryview(self._decoder.decode(data, final=not data).encode())
            except UnicodeError as error:
                raise ConfigurationError(f"{self._name}: not {self._encoding}: {error}; correct encoding") from error
            if not data:
                break
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
