"""Write a run as TensorBoard reads it: scalars in its own format, without TensorBoard.

A file is a row of records, each framed by its length and checksums (TFRecord); a record is an
`Event`, a message of Protocol Buffers. We write the four fields that a scalar needs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from steadygrad.core.stored import Stored
from steadygrad.core.whole import whole
from steadygrad.export.columns import columns, index

VERSION = b"brain.Event:2"  # the first record of every file
TOGETHER = 1000  # scalars of a record at most
VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # how a field is written
WALL_TIME, STEP, FILE_VERSION, SUMMARY = 1, 2, 3, 5  # fields of an Event
VALUE, TAG, SIMPLE_VALUE = 1, 1, 2  # a Summary's field, and two of a Value


def tensorboard(run: Stored, path: Path) -> None:
    """Write a run to a file in a directory; the same run replaces its own file.

    Rows that stand for many steps show their median; what was not read is left out.
    """
    started = run.meta.get("started")
    began = float(started) if isinstance(started, int | float) else 0.0
    path.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{int(began)}.steadygrad"
    with whole(path / name) as written, written.open("wb") as file:
        file.write(record(_event(began) + _field(FILE_VERSION, BYTES, _sized(VERSION))))
        file.writelines(map(record, _events(run, began)))


def _events(run: Stored, began: float) -> Iterator[bytes]:
    found, (steps, seconds, kinds) = columns(run), index(run)
    names = [_field(TAG, BYTES, _sized(name.encode())) for name in found]
    table = np.stack([*found.values()], axis=1) if found else np.zeros((len(steps), 0), np.float32)
    for number, values in enumerate(table):
        if kinds[number] not in ("step", "median"):
            continue
        read = np.flatnonzero(~np.isnan(values)).tolist()
        head = _event(began + float(seconds[number])) + _field(
            STEP, VARINT, _varint(int(steps[number]))
        )
        for start in range(0, len(read), TOGETHER):
            some = {names[place]: float(values[place]) for place in read[start : start + TOGETHER]}
            yield head + _field(SUMMARY, BYTES, _sized(_summary(some)))


# --- Messages ------------------------------------------------------------------------------------


def _event(wall: float) -> bytes:
    return _field(WALL_TIME, DOUBLE, struct.pack("<d", wall))


def _summary(values: Mapping[bytes, float]) -> bytes:
    """Write values by tag; the tags are fields already."""
    mark = bytes([SIMPLE_VALUE << 3 | FLOAT])
    each = (tag + mark + struct.pack("<f", value) for tag, value in values.items())
    return b"".join(_field(VALUE, BYTES, _sized(one)) for one in each)


def _field(number: int, kind: int, content: bytes) -> bytes:
    return bytes([number << 3 | kind]) + content


def _sized(content: bytes) -> bytes:
    return _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Write a whole number in groups of seven bits, the lowest first."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


# --- Records -------------------------------------------------------------------------------------


def record(content: bytes) -> bytes:
    """Frame a record: its length and content, each with its checksum."""
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    """Return the CRC-32C, rotated and shifted as TFRecord wants it."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(content: bytes) -> int:
    """Return the cyclic redundancy check of Castagnoli (RFC 3720, B.4)."""
    crc = 0xFFFFFFFF
    table = TABLE
    for byte in content:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


TABLE = tuple(map(_entry, range(256)))
