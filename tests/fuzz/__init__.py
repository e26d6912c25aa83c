"""Fuzzing: targets that take any bytes at all, and raise where a promise of the package is broken.

`python -m tests.fuzz connection --seconds 60` looks for such bytes; tests/test_fuzz.py runs those of corpus/.
"""

from __future__ import annotations

from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
TARGETS = ("connection", "handshake", "request")


class Reader:
    """Takes an input apart; where it has no more bytes, zeros follow."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def byte(self) -> int:
        return self.number(1)

    def number(self, size: int) -> int:
        """Return the next `size` bytes as a big-endian number."""
        return int.from_bytes(self.take(size).ljust(size, b"\0"), "big")

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, or as many as are left."""
        self._offset += size
        return self._data[self._offset - size : self._offset]

    def rest(self) -> bytes:
        return self._data[self._offset :]

    def __bool__(self) -> bool:
        return self._offset < len(self._data)
