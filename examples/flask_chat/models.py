"""What the chat remembers: people, rooms, messages and files."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable
from datetime import datetime, timezone

from flask_login import UserMixin
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, ForeignKey, UniqueConstraint, and_, event, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

MAX_TEXT, MAX_KEY, MAX_ROOM = 1000, 64, 40  # characters
MAX_FILE = 5 << 20  # bytes
PAGE = 50  # messages
STARTS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"%PDF-": "application/pdf",
}


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


@event.listens_for(Engine, "connect")
def write_ahead(connection: object, record: object) -> None:
    """Have SQLite wait for the disk now and then, not at each message, as all would wait with it."""
    if isinstance(connection, sqlite3.Connection):
        connection.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")


class Refused(Exception):
    """A person's mistake, told in words."""


class User(UserMixin, db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    password: Mapped[str]  # its hash
    login: Mapped[str] = mapped_column(default="")  # the newest one's, which its session has too


class Room(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)

    def messages(self, *, before: int | None = None, after: int = 0) -> list[Message]:
        """Return messages in order: the newest PAGE of those before a number, or all behind one."""
        query = select(Message).where(Message.room_id == self.id, Message.id > after).order_by(Message.id.desc())
        if before is not None:
            query = query.where(Message.id < before)
        return list(db.session.scalars(query if after else query.limit(PAGE)))[::-1]


class Message(db.Model):
    """Something said. key is the sender's: what is sent twice is said once. An announcement has no author."""

    __table_args__ = (UniqueConstraint("author_id", "key"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    room_id: Mapped[int] = mapped_column(ForeignKey(Room.id), index=True)
    author_id: Mapped[int | None] = mapped_column(ForeignKey(User.id))
    key: Mapped[str]
    text: Mapped[str]
    said_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(timezone.utc).replace(tzinfo=None))  # in UTC
    author: Mapped[User | None] = relationship()
    files: Mapped[list[File]] = relationship()


class File(db.Model):
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: secrets.token_urlsafe(16))
    message_id: Mapped[int] = mapped_column(ForeignKey(Message.id), index=True)
    name: Mapped[str]
    type: Mapped[str]
    data: Mapped[bytes] = mapped_column(deferred=True)


class Reading(db.Model):
    """How far somebody has read in a room."""

    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), primary_key=True)
    room_id: Mapped[int] = mapped_column(ForeignKey(Room.id), primary_key=True)
    message_id: Mapped[int]


def type_of(start: bytes | bytearray) -> str:
    """Return the type of a file by its first 12 bytes, whatever its name claims. Raises Refused for other types."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image/webp"
    for mark, kind in STARTS.items():
        if start.startswith(mark):
            return kind
    raise Refused("Only pictures (PNG, JPEG, GIF, WebP) and PDF files can be sent.")


def check_size(size: int) -> None:
    """Raise Refused for a file that is empty or too large."""
    if not 1 <= size <= MAX_FILE:
        raise Refused(f"A file has 1 byte to {MAX_FILE >> 20} MiB.")


def printable(name: str) -> str:
    """Return the name of a file as a link and a header can have it: 1 to 100 characters that are seen."""
    seen = "".join(character if character.isprintable() else " " for character in name)
    return seen.strip()[-100:] or "file"


def write(room_id: int, author_id: int | None, text: str, key: str, files: Iterable[tuple[str, bytes]] = ()) -> Message:
    """Keep a message and return it; one that is sent again is the one that was kept. Raises Refused."""
    text = text.encode(errors="replace").decode().strip()  # half a character cannot be kept
    kept = []
    for name, data in files:
        check_size(len(data))
        kept.append(File(name=printable(name), type=type_of(data), data=data))
    if not (text or kept) or len(text) > MAX_TEXT:
        raise Refused(f"A message has 1 to {MAX_TEXT} characters.")
    if not (key.isascii() and 1 <= len(key) <= MAX_KEY):
        raise Refused(f"The key of a message has 1 to {MAX_KEY} characters.")
    message = Message(room_id=room_id, author_id=author_id, text=text, key=key, files=kept)
    db.session.add(message)
    try:
        db.session.commit()
    except IntegrityError:
        db.session.rollback()
        message = db.session.scalars(select(Message).where(Message.author_id == author_id, Message.key == key)).one()
    return message


def mark_read(user_id: int, room_id: int) -> None:
    """Note that somebody has read all of a room."""
    newest = db.session.scalar(select(func.max(Message.id)).where(Message.room_id == room_id))
    db.session.merge(Reading(user_id=user_id, room_id=room_id, message_id=newest or 0))
    db.session.commit()


def unread(user_id: int) -> dict[int, int]:
    """Return how many messages of others somebody has not read, by the numbers of their rooms."""
    mine = and_(Reading.room_id == Message.room_id, Reading.user_id == user_id)
    query = (
        select(Message.room_id, func.count())
        .outerjoin(Reading, mine)
        .where(Message.id > func.coalesce(Reading.message_id, 0))
        .where(or_(Message.author_id.is_(None), Message.author_id != user_id))
        .group_by(Message.room_id)
    )
    return {row[0]: row[1] for row in db.session.execute(query)}
