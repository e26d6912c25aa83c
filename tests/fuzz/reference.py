"""A second opinion on a stream of frames: wsproto, told in the package's own events, with a plain inflate."""

from __future__ import annotations

import zlib
from typing import Any

from wsproto.connection import Connection as WsprotoConnection
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as WsprotoPing
from wsproto.events import Pong as WsprotoPong
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, Frame, FrameProtocol, Opcode, RsvBits

from geventws.connection import Close, Event, Failure, Ping, Pong
from geventws.permessage_deflate import Agreement

TAIL = b"\x00\x00\xff\xff"  # RFC 7692 §7.2.2
LAST_BLOCK = b"\x01\x00\x00\xff\xff"  # an empty stored block that ends a DEFLATE stream
BAD_GATEWAY = (1014).to_bytes(2, "big")
MOST_STREAMS = 16  # past which the package takes a message for an attack


class Inflate(Extension):
    """permessage-deflate for what comes in: gathers a whole message, then inflates it in one step.

    wsproto's own forgets at a Ping that a message is compressed, and does not see that one is incomplete.
    """

    name = "permessage-deflate"

    def __init__(self, window_bits: int, keeps_context: bool) -> None:
        self._window_bits = window_bits
        self._keeps_context = keeps_context
        self._inflater: Any = None
        self._compressed: bytearray | None = None  # of the message that is arriving, where it is compressed
        self._in_message = False  # and not in a control frame

    def offer(self) -> bool | str:
        return True

    def enabled(self) -> bool:
        return True

    def frame_inbound_header(self, proto: Any, opcode: Opcode, rsv: RsvBits, payload_length: int) -> RsvBits:
        self._in_message = not opcode.iscontrol()
        starts = opcode in (Opcode.TEXT, Opcode.BINARY)
        if starts:
            self._compressed = bytearray() if rsv.rsv1 else None
        return RsvBits(starts, False, False)

    def frame_inbound_payload_data(self, proto: Any, data: bytes) -> bytes | CloseReason:
        if self._compressed is None or not self._in_message:
            return data
        self._compressed += data
        return b""

    def frame_inbound_complete(self, proto: Any, fin: bool) -> bytes | CloseReason | None:
        if self._compressed is None or not self._in_message or not fin:
            return None
        compressed, self._compressed = self._compressed, None
        try:
            return self._inflate(bytes(compressed) + TAIL)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA

    def _inflate(self, rest: bytes) -> bytes:
        inflater = self._inflater or zlib.decompressobj(-self._window_bits)
        data = inflater.decompress(rest)
        streams = 1
        while inflater.unused_data and streams < MOST_STREAMS:
            rest, inflater = inflater.unused_data, zlib.decompressobj(-self._window_bits)
            data += inflater.decompress(rest)
            streams += 1
        end = inflater.copy()
        if not end.eof:
            end.decompress(LAST_BLOCK)
        if end.unused_data or not end.eof:
            raise zlib.error("incomplete, or too many streams")
        self._inflater = inflater if self._keeps_context and not inflater.eof else None
        return data


class Frames(FrameProtocol):
    """wsproto's frames, with a close code that is younger than wsproto's list: 1014."""

    def _process_close(self, frame: Frame) -> Frame:
        payload = bytes(frame.payload)  # type: ignore[arg-type]
        if payload[:2] != BAD_GATEWAY:
            return super()._process_close(frame)
        frame = super()._process_close(frame._replace(payload=b"\x03\xe8" + payload[2:]))
        return frame._replace(payload=(1014, str(frame.payload[1])))


class Reference:
    """One end of a connection that only listens."""

    def __init__(self, *, client: bool, agreement: Agreement | None) -> None:
        extensions: list[Extension] = []
        if agreement is not None:
            forgets, bits = agreement[0::2] if client else agreement[1::2]
            extensions.append(Inflate(max(bits or 15, 9), not forgets))
        self._wsproto = WsprotoConnection(ConnectionType.CLIENT if client else ConnectionType.SERVER)
        self._wsproto._proto = Frames(client, extensions)
        self._parts: list[Any] = []

    def receive(self, wire: bytes) -> list[Event]:
        """Return the events of wire. A Failure has no reason, its code is all that two parties can agree on."""
        self._wsproto.receive_data(wire)
        events: list[Event] = []
        for event in self._wsproto.events():
            if isinstance(event, (TextMessage, BytesMessage)):
                self._parts.append(event.data)
                if event.message_finished:
                    events.append(("" if isinstance(event, TextMessage) else b"").join(self._parts))
                    self._parts.clear()
            elif isinstance(event, WsprotoPing):
                events.append(Ping(bytes(event.payload)))
            elif isinstance(event, WsprotoPong):
                events.append(Pong(bytes(event.payload)))
            elif isinstance(event, CloseConnection):
                closed = self._wsproto.state is ConnectionState.REMOTE_CLOSING
                events.append(Close(int(event.code), event.reason or "") if closed else Failure(int(event.code), ""))
        return events
