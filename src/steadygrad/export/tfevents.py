"""The event files of TensorBoard, in its own format, without TensorBoard.

A file is a row of records, each framed by its length and checksums (TFRecord); a record is an
`Event`, a message of Protocol Buffers. We write the fields that a scalar and a text need.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

VERSION = b"brain.Event:2"  # the first record of every file
BATCH = 512  # records whose checksums are taken together
VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # how a field is written
WALL_TIME, STEP, FILE_VERSION, SUMMARY = 1, 2, 3, 5  # fields of an Event
VALUE = 1  # the field of a Summary
TAG, SIMPLE_VALUE, TENSOR, METADATA = 1, 2, 8, 9  # fields of a Value
DTYPE, SHAPE, STRINGS = 1, 2, 8  # fields of a tensor
STRING_TYPE = 7  # a DTYPE
FIRST = 1  # the only field of a shape, of its dimension, of metadata, and of what names a plugin

# --- Messages ------------------------------------------------------------------------------------


def opening(wall: float) -> bytes:
    """Return the event that a file begins with."""
    return _at(wall) + _part(FILE_VERSION, VERSION)


def scalars(wall: float, step: int, values: Mapping[bytes, float]) -> bytes:
    """Return an event of numbers by `tag`, at a step and a time in seconds of the epoch."""
    mark = bytes([SIMPLE_VALUE << 3 | FLOAT])
    each = (name + mark + struct.pack("<f", value) for name, value in values.items())
    return _summary(wall, step, b"".join(_part(VALUE, one) for one in each))


def text(wall: float, step: int, name: bytes, words: str) -> bytes:
    """Return an event of a text in Markdown under a `tag`."""
    shape = _part(FIRST, _field(FIRST, VARINT, _varint(1)))
    tensor = _field(DTYPE, VARINT, _varint(STRING_TYPE)) + _part(SHAPE, shape)
    tensor += _part(STRINGS, words.encode())
    plugin = _part(FIRST, _part(FIRST, b"text"))
    value = name + _part(TENSOR, tensor) + _part(METADATA, plugin)
    return _summary(wall, step, _part(VALUE, value))


def tag(name: str) -> bytes:
    """Return a name as the field that `scalars` and `text` take."""
    return _part(TAG, name.encode())


def _summary(wall: float, step: int, values: bytes) -> bytes:
    return _at(wall) + _field(STEP, VARINT, _varint(step)) + _part(SUMMARY, values)


def _at(wall: float) -> bytes:
    return _field(WALL_TIME, DOUBLE, struct.pack("<d", wall))


def _part(number: int, content: bytes) -> bytes:
    return _field(number, BYTES, _sized(content))


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


def records(contents: Iterable[bytes]) -> Iterator[bytes]:
    """Frame records: the length and the content of each, both with their checksums."""
    rest = iter(contents)
    while batch := list(islice(rest, BATCH)):
        lengths = [struct.pack("<Q", len(one)) for one in batch]
        for parts in zip(lengths, _checksums(lengths), batch, _checksums(batch), strict=True):
            yield b"".join(parts)


def _checksums(contents: Sequence[bytes]) -> list[bytes]:
    """Return each CRC-32C, rotated and shifted as TFRecord wants it."""
    crc = crc32c(contents)
    masked = (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)  # all of it modulo 2^32
    return [struct.pack("<I", one) for one in masked.tolist()]


def crc32c(contents: Sequence[bytes]) -> NDArray[np.uint32]:
    """Return the cyclic redundancy checks of Castagnoli (RFC 3720, B.4) [contents].

    A byte of all contents is taken at once, as one after another takes Python 0.2 s a megabyte:
    they stand in columns, the longest first, so that those not yet at their end are neighbors.
    """
    order = sorted(range(len(contents)), key=lambda place: -len(contents[place]))
    sizes = np.array([len(contents[place]) for place in order])
    columns = np.zeros((max(sizes, default=0), len(order)), np.uint8)
    for column, place in enumerate(order):
        columns[: sizes[column], column] = np.frombuffer(contents[place], np.uint8)
    crc = np.full(len(order), 0xFFFFFFFF, np.uint32)
    alive = len(order) - np.searchsorted(sizes[::-1], np.arange(len(columns)), side="right")
    for line, many in zip(columns, alive.tolist(), strict=True):
        crc[:many] = TABLE[(crc[:many] ^ line[:many]) & 255] ^ crc[:many] >> 8
    found = np.zeros_like(crc)
    found[order] = crc ^ 0xFFFFFFFF
    return found


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


TABLE = np.array([*map(_entry, range(256))], np.uint32)
