"""Messages: the one that is still arriving.

Knows what text and binary are; knows no frame order, connection or socket.
"""

from __future__ import annotations

import codecs

from .errors import InvalidPayload
from .frames import mask_joined

NOT_UTF_8 = "text is not UTF-8"
SMALL_PIECE = 4096  # bytes of a message below which a piece is joined to others at once


class Incomplete:
    """A message that is still arriving: its bytes so far, checked as they come."""

    __slots__ = ("_pieces", "_tail", "compressed", "is_text", "masking_key", "size", "weight")

    def __init__(self, is_text: bool, compressed: bool) -> None:
        self.is_text = is_text
        self.compressed = compressed
        self.size = 0  # bytes so far
        self.weight = 0
        self.masking_key = b""  # of what is still masked
        self._pieces: list[bytes | bytearray] = []
        self._tail = b""  # the last bytes, where they end inside a character

    def add(self, chunk: bytes) -> None:
        """Append payload bytes.

        Raises InvalidPayload or UnicodeDecodeError at the first byte that cannot be UTF-8 (§8.1).
        """
        self.size += len(chunk)
        # Joined once in the end, 1 MiB is copied one time less than in a bytearray. Small ones are not worth an object.
        if len(chunk) >= SMALL_PIECE:
            self._pieces.append(chunk)
        elif self._pieces and isinstance(self._pieces[-1], bytearray):
            self._pieces[-1] += chunk
        else:
            self._pieces.append(bytearray(chunk))
        if self.is_text and (self._tail or not chunk.isascii()):
            unchecked = self._tail + chunk
            _, valid = codecs.utf_8_decode(unchecked)
            self._tail = unchecked[valid:]
            if self._tail[:1] == b"\xed" and self._tail[1:] >= b"\xa0":
                raise InvalidPayload(NOT_UTF_8)  # a surrogate, which Python sees only at its third byte

    def finish(self) -> str | bytes:
        """Return the whole message. Raises UnicodeDecodeError for text that ends inside a character."""
        data = mask_joined(self._pieces, self.masking_key) if self.masking_key else b"".join(self._pieces)
        return data.decode() if self.is_text else data
