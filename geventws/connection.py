"""Connection: one WebSocket after its opening handshake, as bytes in and events and bytes out.

Knows RFC 6455 §5 to §7: messages from fragments, control frames, the closing handshake; and where
compression sits in them. Knows no socket, clock or greenlet: whoever owns one carries the bytes.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import NamedTuple

from .errors import CloseCode, ConnectionClosed, InvalidPayload, MessageTooBig, ProtocolError
from .fast import ConnectionFields, let_go, take_back
from .frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    CONTROL,
    FIN,
    MASK,
    MAX_CONTROL_PAYLOAD,
    PING,
    PONG,
    RSV,
    RSV1,
    TEXT,
    Header,
    close_payload,
    encode_frame,
    encode_header,
    frame_parts,
    mask,
    parse_close,
    parse_header,
)
from .message import NOT_UTF_8, Incomplete, Prepared, Sendable, encode
from .permessage_deflate import SMALLEST_LIMIT, Deflate

WHOLE_TEXT, WHOLE_BINARY = FIN | TEXT, FIN | BINARY  # first bytes of a message in one frame
DEFLATED_TEXT, DEFLATED_BINARY = RSV1 | WHOLE_TEXT, RSV1 | WHOLE_BINARY  # and of one that is compressed
SMALL_TEXT = tuple(encode_header(WHOLE_TEXT, 0, size) for size in range(126))
FRAGMENT_WEIGHT = 16  # bytes each fragment counts for at least, so that endless empty ones end too (§10.4)


class State(Enum):
    """Where the closing handshake stands."""

    OPEN = "open"
    LOCAL_CLOSING = "local closing"  # our Close is sent
    REMOTE_CLOSING = "remote closing"  # theirs is received
    FAILING = "failing"  # the peer broke a rule and is not told yet
    CLOSED = "closed"


class Step(Enum):
    """What moves a connection from one state to the next."""

    CLOSE_SENT = "close sent"
    CLOSE_RECEIVED = "close received"
    RULE_BROKEN = "rule broken"
    EOF = "eof"


OPEN, LOCAL_CLOSING, REMOTE_CLOSING, FAILING, CLOSED = State
CLOSE_SENT, CLOSE_RECEIVED, RULE_BROKEN, EOF = Step

NEXT = {
    (OPEN, CLOSE_SENT): LOCAL_CLOSING,
    (OPEN, CLOSE_RECEIVED): REMOTE_CLOSING,
    (OPEN, RULE_BROKEN): FAILING,
    (LOCAL_CLOSING, CLOSE_RECEIVED): CLOSED,
    (LOCAL_CLOSING, RULE_BROKEN): CLOSED,  # one Close in all: the peer has ours (§5.5.1)
    (REMOTE_CLOSING, CLOSE_SENT): CLOSED,
    (FAILING, CLOSE_SENT): CLOSED,
}
# A lost peer ends the connection from anywhere (§7.1.4).
NEXT |= {(state, EOF): CLOSED for state in State}


class Ping(NamedTuple):
    """A Ping came; its Pong waits in take_pongs()."""

    payload: bytes


class Pong(NamedTuple):
    """A Pong came."""

    payload: bytes


class Close(NamedTuple):
    """The peer's Close came. What the peer sends after it does not count. code is 1005 if the Close has none."""

    code: int
    reason: str


class Failure(NamedTuple):
    """The peer broke a rule. What it sends after that does not count. close() tells it."""

    code: int
    reason: str


Event = str | bytes | Ping | Pong | Close | Failure


class Connection(ConnectionFields):
    """One end of an open WebSocket.

    A server's by default; client=True masks what it sends and refuses masked frames (§5.1). deflate
    compresses what is sent and allows the peer to compress.
    """

    __slots__ = (
        "_client",
        "_failure",
        "_header",
        "_left",
        "_most_inflated",
        "_offset",
        "_pongs",
        "close_code",
        "close_reason",
    )

    def __init__(
        self, *, client: bool = False, max_message_size: int = 1 << 20, deflate: Deflate | None = None
    ) -> None:
        self.state = OPEN
        self.close_code: int | None = None  # of the first Close either way; 1006 where there was none
        self.close_reason = ""
        self.max_message_size = max_message_size
        self.deflate = deflate
        self._piece_size = 0  # payload bytes of a frame of which C has a part
        self.inflated = 0  # bytes that compressed messages became
        self.limited = False  # receive_data() stopped at its limit: call it again
        self._client = client
        self._failure: Failure | None = None
        self._buffer = b""
        self._offset = 0  # of the first byte of _buffer that is not parsed
        self._message: Incomplete | None = None
        self._header: Header | None = None  # of the data frame that is arriving
        self._left = 0  # payload bytes it still lacks
        self._most_inflated = 0  # what `inflated` may become in this call of receive_data()
        self._pongs: list[bytes] = []

    def receive_data(self, data: bytes = b"", limit: int = 1 << 62, most_inflated: int = 1 << 62) -> list[Event]:
        """Return the events that data completes, parsing at most `limit` frames.

        It stops sooner once `most_inflated` bytes, 1 at least, are inflated. The rest of the bytes is kept. If
        `limited` is true then, more may wait in them: call again without data, which costs no copy. Close and
        Failure come last. What follows them is thrown away. close() gives the bytes that answer them.
        """
        events: list[Event] = []
        if self.state is not OPEN and not self._may_receive:
            return events
        start = 0
        data = take_back(self) + data if self._piece_size else data
        if self._buffer:
            start = self._offset
            data, start = (self._buffer[start:] + data, 0) if data else (self._buffer, start)
        end = len(data)
        inflate_frame = None
        try:
            if self.deflate is not None:
                if self.max_message_size >= SMALLEST_LIMIT:
                    inflate_frame = self.deflate.inflate_frame
                self._most_inflated = self.inflated + most_inflated
                if self.deflate.pending:
                    self._take_in(b"", events)  # more of the message whose bytes are all here
                    if self.inflated >= self._most_inflated:
                        limit = 0
            # A client's peer masks nothing: it always takes the general path.
            between_messages = self._message is None and not self._client
            while start < end and limit:
                limit -= 1
                # Nearly every frame is a small whole message, text or binary: spare it the general path, 1.1 of 1.6 µs.
                first = data[start]
                if between_messages and WHOLE_TEXT <= first <= WHOLE_BINARY and start + 6 <= end:
                    size = data[start + 1] - MASK
                    stop = start + 6 + size
                    if 0 <= size < 126 and stop <= end and size <= self.max_message_size:
                        payload = mask(data, data[start + 2 : start + 6], start + 6, stop)
                        events.append(payload.decode() if first == WHOLE_TEXT else payload)
                        start = stop
                        continue
                # Those of a browser are compressed.
                elif between_messages and inflate_frame and DEFLATED_TEXT <= first <= DEFLATED_BINARY:
                    most = min(self.max_message_size + 1, self._most_inflated - self.inflated)
                    if inflated := inflate_frame(data, start, most):
                        payload, start = inflated
                        self.inflated += len(payload)
                        events.append(payload.decode() if first == DEFLATED_TEXT else payload)
                        continue
                stop = self._receive_frame(data, start, events)
                if stop == start:
                    limit += 1  # that was no frame yet
                    break
                start = stop
                if self.state is not OPEN and not self._may_receive:
                    break
                between_messages = self._message is None and not self._client
                if self.deflate is not None and self.inflated >= self._most_inflated:
                    limit = 0
        except UnicodeDecodeError:
            self._fail(InvalidPayload(NOT_UTF_8), events)
        except ProtocolError as exc:
            self._fail(exc, events)
        if (start == end and not self._is_inflating) or not self._may_receive:
            self._buffer, self._offset, self.limited = b"", 0, False
        elif not limit or self._is_inflating:
            self._buffer, self._offset, self.limited = data, start, True
        else:
            self._buffer, self._offset, self.limited = data[start:], 0, False
        return events

    def _receive_frame(self, data: bytes, start: int, events: list[Event]) -> int:
        """Take in the frame, or the piece of a data frame, at data[start:]; return where it stops.

        Returns start while a header or a control frame is incomplete.
        """
        if self._left:
            return self._receive_piece(data, start, events)
        deflates = self.deflate is not None
        if not data[start] & (RSV - RSV1 if deflates else RSV):
            self._check_sequence(data[start] & 0x0F)
        header = parse_header(data, start, masked=not self._client, deflate=deflates)
        if header is None:
            return start
        if header.opcode >= CONTROL:
            stop = header.stop + header.size
            if stop > len(data):
                return start
            self._receive_control(header.opcode, _unmasked(data, header.masking_key, header.stop, stop), events)
            return stop
        message = self._message
        # Endless empty fragments would never grow a message past its limit.
        weight = header.size if header.fin and message is None else max(header.size, FRAGMENT_WEIGHT)
        weight += message.weight if message is not None else 0
        # What cannot be compressed grows: by an eighth in the fixed codes of DEFLATE, and by what each flush adds.
        is_compressed = header.compressed if message is None else message.compressed
        self._check_size(weight // 2 - 64 if is_compressed else weight)
        if header.stop > len(data):
            return start
        # Nearly every compressed message is one frame, too: without an Incomplete the interpreter does 16 % less.
        if message is None and header.fin and header.stop + header.size <= len(data):
            return self._receive_whole(data, header, events)
        if message is None:
            message = self._message = Incomplete(header.opcode == TEXT, header.compressed)
            # Nothing is to be seen in a binary message before its end. If it is one frame, it is unmasked while it is
            # joined, which spares 1 MiB a copy: an echo takes 9 to 11 % less processor time.
            if header.fin and header.opcode == BINARY and not header.compressed:
                message.masking_key = header.masking_key
        message.weight = weight
        self._header = header
        self._left = header.size
        return self._receive_piece(data, header.stop, events)

    def _receive_whole(self, data: bytes, header: Header, events: list[Event]) -> int:
        """Take in a message whose only frame is here to the end; return where it stops."""
        stop = header.stop + header.size
        payload = _unmasked(data, header.masking_key, header.stop, stop)
        if header.compressed:
            payload = self._inflate(payload, 0, last=True)
            if self._is_inflating:
                self._header = header
                self._message = Incomplete(header.opcode == TEXT, compressed=True)
                self._message.add(payload)
                return stop
        events.append(payload.decode() if header.opcode == TEXT else payload)
        return stop

    def _check_sequence(self, opcode: int) -> None:
        """Raise ProtocolError for a data frame that may not stand here. Source: RFC 6455 §5.4."""
        if opcode == CONTINUATION and self._message is None:
            raise ProtocolError("continuation frame without a message to continue")
        if opcode in (TEXT, BINARY) and self._message is not None:
            raise ProtocolError("new message before the last fragment of the one before")

    def _receive_piece(self, data: bytes, start: int, events: list[Event]) -> int:
        """Take in what data[start:] has of the payload that is arriving; return where it stops."""
        header, message = self._header, self._message
        assert header is not None and message is not None
        stop = min(start + self._left, len(data))
        rotation = (header.size - self._left) & 3
        key = b"" if message.masking_key else header.masking_key[rotation:] + header.masking_key[:rotation]
        self._left -= stop - start
        self._take_in(_unmasked(data, key, start, stop), events)
        return stop

    def _take_in(self, piece: bytes, events: list[Event]) -> None:
        """Add a piece to the message that is arriving, or b"" to inflate more of the one before."""
        header, message = self._header, self._message
        assert header is not None and message is not None
        if message.compressed:
            piece = self._inflate(piece, message.size, last=header.fin and not self._left)
        message.add(piece)
        if not self._left and not self._is_inflating:
            self._header = None
            if header.fin:
                self._message = None
                events.append(message.finish())

    @property
    def _is_inflating(self) -> bool:
        return self.deflate is not None and self.deflate.pending

    def _inflate(self, piece: bytes, received: int, *, last: bool) -> bytes:
        """Return what a piece of a message, of which `received` bytes are here, inflates to in this call."""
        assert self.deflate is not None
        most = min(self.max_message_size - received + 1, self._most_inflated - self.inflated)
        piece = self.deflate.inflate(piece, most, last=last)
        self.inflated += len(piece)
        self._check_size(received + len(piece))
        return piece

    def _check_size(self, size: int) -> None:
        if size > self.max_message_size:
            raise MessageTooBig(f"message of at least {size} bytes, limit {self.max_message_size}")

    def _receive_control(self, opcode: int, payload: bytes, events: list[Event]) -> None:
        if opcode == PING:
            self._pongs.append(self._frame(PONG, payload))
            events.append(Ping(payload))
        elif opcode == PONG:
            events.append(Pong(payload))
        else:
            code, reason = parse_close(payload)
            self.state = NEXT[self.state, CLOSE_RECEIVED]
            self._pongs.clear()
            self._settle(code, reason)
            events.append(Close(code, reason))

    def _fail(self, error: ProtocolError, events: list[Event]) -> None:
        self._failure = Failure(int(error.close_code), str(error))
        self.state = NEXT[self.state, RULE_BROKEN]
        if self.state is CLOSED:
            self._pongs.clear()
        self._message = self.deflate = None
        events.append(self._failure)

    def _settle(self, code: int, reason: str) -> None:
        if self.close_code is None:
            self.close_code, self.close_reason = int(code), reason

    @property
    def may_send(self) -> bool:
        """Whether messages may still be sent: our Close is not."""
        return self.state is not LOCAL_CLOSING and self.state is not CLOSED

    @property
    def _may_receive(self) -> bool:
        """Whether what comes still counts: the peer has neither closed nor broken a rule."""
        return self.state is OPEN or self.state is LOCAL_CLOSING

    def receive_eof(self, reason: str = "") -> None:
        """Note that the byte stream has ended: without a Close before, the close code is 1006 (§7.1.5)."""
        self._settle(CloseCode.ABNORMAL_CLOSURE, reason)
        self._message = self.deflate = None
        self._buffer, self._offset, self.limited = b"", 0, False
        let_go(self)
        self._pongs.clear()
        self.state = NEXT[self.state, EOF]

    def take_pongs(self, *, latest_only: bool = False) -> bytes:
        """Return the Pong frames that answer the Pings received since the last call.

        With latest_only it keeps the newest of them for later, drops the others, and returns b"". That is for while
        the peer does not take what it was sent: §5.5.3 allows to answer only the latest Ping.
        """
        if latest_only:
            del self._pongs[:-1]
            return b""
        pongs = b"".join(self._pongs)
        self._pongs.clear()
        return pongs

    def encode_message(self, message: Sendable | Prepared, binary: bool | None = None) -> bytes:
        """Return the frame of a message: str as text, bytes-like as binary, unless `binary` says otherwise.

        Raises ConnectionClosed when no message may be sent any more, TypeError for another type and
        ValueError for text that UTF-8 cannot carry.
        """
        if isinstance(message, str) and len(message) < 126 and not binary and self.state is OPEN and not self._client:
            payload = message.encode()
            size = len(payload)
            if size < 126 and (self.deflate is None or size < self.deflate.threshold):
                return SMALL_TEXT[size] + payload  # what nearly every reply is: 0.1 of 0.3 µs
        if isinstance(message, Prepared):
            return self._encode_prepared(message, binary)
        return b"".join(self.encode_parts(message, binary))

    def _encode_prepared(self, prepared: Prepared, binary: bool | None) -> bytes:
        if binary is not None:
            raise TypeError("a Prepared is text or binary already: Prepared(message, binary)")
        if self._client or not self.may_send:  # a key for each frame, or an error
            return b"".join(self.encode_parts(prepared.message))
        return prepared.frame(self.deflate)

    def encode_parts(self, message: Sendable, binary: bool | None = None) -> tuple[bytes, bytes]:
        """Return header and payload of a message's frame, as encode_message(): of a large one that is a copy less."""
        if not self.may_send:
            raise ConnectionClosed(self.close_code or CloseCode.ABNORMAL_CLOSURE, self.close_reason)
        first, payload = encode(message, binary)
        if self.deflate is not None and len(payload) >= self.deflate.threshold:
            compressed = self.deflate.compress(payload)
            if compressed is not None:
                first, payload = first | RSV1, compressed
        return frame_parts(first, payload, self._masking_key())

    def encode_ping(self, payload: bytes) -> bytes:
        """Return a Ping frame. Raises ValueError for a payload of more than 125 bytes."""
        if len(payload) > MAX_CONTROL_PAYLOAD:
            raise ValueError(f"ping payload of {len(payload)} bytes, limit {MAX_CONTROL_PAYLOAD}")
        return self._frame(PING, payload)

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> bytes:
        """Return the Close frame to send now, b"" if ours is sent already.

        It starts the closing handshake; or answers the peer's Close, with its own code (§5.5.1); or
        tells a peer that broke a rule which one. Raises ValueError for a code that may not be sent and a
        reason that UTF-8 cannot carry.
        """
        payload = close_payload(code, reason)
        if not self.may_send:
            return b""
        if self.state is REMOTE_CLOSING:
            assert self.close_code is not None
            # §5.5.1 "typically echos the status code": 1005 means none came, so none goes.
            payload = b"" if self.close_code == CloseCode.NO_STATUS_RECEIVED else close_payload(self.close_code)
        elif self.state is FAILING:
            assert self._failure is not None
            code, reason = self._failure
            payload = close_payload(code, reason)
            self._pongs.clear()
        self._settle(code, reason)
        self.state = NEXT[self.state, CLOSE_SENT]
        return self._frame(CLOSE, payload)

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        return encode_frame(opcode, payload, masking_key=self._masking_key())

    def _masking_key(self) -> bytes:
        return os.urandom(4) if self._client else b""


def _unmasked(data: bytes, key: bytes, start: int, stop: int) -> bytes:
    return mask(data, key, start, stop) if key else data[start:stop]
