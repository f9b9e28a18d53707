"""Write a run as TensorBoard reads it: scalars in its own format, without TensorBoard.

A file is a row of records, each framed by its length and checksums (TFRecord); a record is an
`Event`, a message of Protocol Buffers. We write the four fields that a scalar needs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steadygrad.core.stored import Stored
from steadygrad.core.whole import whole
from steadygrad.export.columns import columns, index

VERSION = b"brain.Event:2"  # the first record of every file
TOGETHER = 1000  # scalars of a record at most
BATCH = 512  # records whose checksums are taken together
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
        head = _event(began) + _field(FILE_VERSION, BYTES, _sized(VERSION))
        file.writelines(records(chain([head], _events(run, began))))


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
