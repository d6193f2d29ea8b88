"""Text in large blocks: its lines, and the fields of some of them as columns of numbers.

Everything is done for all lines of a block at once.  What a field must be is checked on the way, so the
place of what cannot be read is known without reading it a second time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Bytes that are read at a time; no line may be longer.
BLOCK_BYTES = 1 << 24

#: Faults that one file may hold: 4 GiB of columns.
MAX_FAULTS = 1 << 27

#: Digits that always fit a uint64.
_MOST_DIGITS = {10: 19, 16: 16}

_NOT_A_DIGIT = np.uint64(255)

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Truths = npt.NDArray[np.bool_]


def _digits(base: int) -> Words:
    values = np.full(256, _NOT_A_DIGIT)
    for value, digit in enumerate("0123456789abcdef"[:base]):
        values[ord(digit)] = values[ord(digit.upper())] = value
    return values


_VALUES = {10: _digits(10), 16: _digits(16)}


@dataclass(frozen=True)
class Block:
    """Some whole lines of a file: line ``first + i`` is ``text[starts[i]:ends[i]]``.

    ``cut`` is true where the last line has no newline, so that the file ended in it.
    """

    text: Bytes
    starts: Places
    ends: Places
    first: int
    cut: bool


def blocks(path: str | os.PathLike[str]) -> Iterator[Block]:
    """Yield a file of text block by block.

    OSError where it cannot be read, ValueError for a line longer than BLOCK_BYTES.
    """
    first, rest = 1, b""
    with open(path, "rb") as file:
        while read := file.read(BLOCK_BYTES):
            whole, newline, tail = read.rpartition(b"\n")
            if newline:
                block = _block(rest + whole + newline, first, cut=False)
                first, rest = first + len(block.starts), tail
                yield block
            else:
                rest += tail
            if len(rest) > BLOCK_BYTES:
                raise ValueError(f"{path}: line {first} is longer than {BLOCK_BYTES} bytes: this is no text")
    if rest:
        yield _block(rest + b"\n", first, cut=True)


def _block(data: bytes, first: int, *, cut: bool) -> Block:
    text = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    starts = np.concatenate((np.zeros(1, dtype=np.int64), ends[:-1] + 1))
    carriage = (ends > starts) & (text[ends - 1] == ord("\r"))
    return Block(text, starts, ends - carriage, first, cut)


class Rows:
    """The fields, parted by commas, of some lines of a block.

    ``lines`` are places of lines in the block, ``begins`` where the first field of each begins, ``names``
    the columns.  Lines with more or fewer fields are left out, and refused by :meth:`check`.
    """

    def __init__(
        self, path: str | os.PathLike[str], block: Block, lines: Places, begins: Places, names: Sequence[str]
    ) -> None:
        self._path = path
        self._text = block.text
        self._names = list(names)
        self._refused: list[tuple[int, int, str]] = []
        commas = np.flatnonzero(block.text == ord(","))
        ends = block.ends[lines]
        low, high = np.searchsorted(commas, begins), np.searchsorted(commas, ends)
        fields = high - low + 1
        self.lines = block.first + lines
        if block.cut and len(lines) and lines[-1] == len(block.starts) - 1:
            column = min(int(fields[-1]), len(names)) - 1
            self._refused.append((int(self.lines[-1]), column, "the file ends in it"))
        for row in np.flatnonzero(fields != len(names))[:1]:
            missing = fields[row] < len(names)
            rule = "is missing" if missing else f"must be the last (got {int(fields[row])} fields)"
            self._refused.append((int(self.lines[row]), min(int(fields[row]), len(names) - 1), rule))
        fits = fields == len(names)
        self.lines, begins, ends, low = self.lines[fits], begins[fits], ends[fits], low[fits]
        self._starts = np.empty((len(names), len(begins)), dtype=np.int64)
        self._ends = np.empty_like(self._starts)
        for column in range(len(names)):
            self._starts[column] = begins if column == 0 else self._ends[column - 1] + 1
            self._ends[column] = ends if column == len(names) - 1 else commas[low + column]

    def __len__(self) -> int:
        return len(self.lines)

    def decimal(self, name: str, most: int = (1 << 63) - 1) -> Words:
        """Return a column of decimal numbers of up to ``most``: uint64[n]."""
        return self._number(name, 10, most, np.zeros(len(self), dtype=np.int64))

    def hexadecimal(self, name: str, *, prefix: bool) -> Words:
        """Return a column of hexadecimal numbers, with or without 0x before them: uint64[n]."""
        column = self._names.index(name)
        skip = np.full(len(self), 2 if prefix else 0, dtype=np.int64)
        if prefix:
            start = self._starts[column]
            wrong = self._ends[column] - start < 3
            for place, byte in enumerate(b"0x"):
                wrong |= self._text[np.minimum(start + place, len(self._text) - 1)] != byte
            self.refuse(name, wrong, "must be a hexadecimal number that begins with 0x")
            skip[wrong] = 0
        return self._number(name, 16, (1 << 64) - 1, skip)

    def places(self, name: str, words: Sequence[str]) -> npt.NDArray[np.int8]:
        """Return the place of each word of a column among ``words``: int8[n]."""
        column = self._names.index(name)
        start, length = self._starts[column], self._ends[column] - self._starts[column]
        found = np.full(len(self), -1, dtype=np.int8)
        for place, word in enumerate(words):
            same = length == len(word)
            for at, byte in enumerate(word.encode()):
                same &= self._text[np.minimum(start + at, len(self._text) - 1)] == byte
            found[same] = place
        self.refuse(name, found < 0, f"must be one of {', '.join(words)}")
        return found

    def empty(self, name: str) -> Truths:
        """Return which fields of a column are empty."""
        column = self._names.index(name)
        return self._starts[column] == self._ends[column]

    def take(self, rows: Truths) -> Rows:
        """Return some of the rows; what is refused of them is refused here too."""
        taken = object.__new__(Rows)
        taken.__dict__.update(self.__dict__)
        taken.lines = self.lines[rows]
        taken._starts, taken._ends = self._starts[:, rows], self._ends[:, rows]
        return taken

    def refuse(self, name: str, wrong: Truths, rule: str) -> None:
        """Note the first field of a column that breaks a rule."""
        if wrong.any():
            row, column = int(np.argmax(wrong)), self._names.index(name)
            field = self._text[self._starts[column, row] : self._ends[column, row]].tobytes()
            shown = field[:40].decode(errors="replace")
            self._refused.append((int(self.lines[row]), column, f"{rule} (got {shown!r})"))

    def check(self) -> None:
        """ValueError that names the first line, and the first column in it, of all that was refused."""
        if self._refused:
            line, column, rule = min(self._refused, key=lambda refused: refused[:2])
            raise ValueError(f"{self._path}: line {line}, column {self._names[column]}: {rule}")

    def _number(self, name: str, base: int, most: int, skip: Places) -> Words:
        column = self._names.index(name)
        start = self._starts[column] + skip
        length = self._ends[column] - start
        wrong = (length < 1) | (length > _MOST_DIGITS[base])
        values = _VALUES[base]
        number = np.zeros(len(self), dtype=np.uint64)
        for place in range(min(int(length.max(initial=0)), _MOST_DIGITS[base])):
            inside = length > place
            digit = values[self._text[np.minimum(start + place, len(self._text) - 1)]]
            wrong |= inside & (digit == _NOT_A_DIGIT)
            number = np.where(inside, number * np.uint64(base) + digit, number)
        kind = "decimal" if base == 10 else "hexadecimal"
        self.refuse(name, wrong, f"must be a {kind} number without a sign")
        self.refuse(name, ~wrong & (number > np.uint64(most)), f"must be at most {most}")
        return number


def refuse_cut(path: str | os.PathLike[str], block: Block) -> None:
    """ValueError where the file ends in the last line of ``block``."""
    if block.cut:
        line = block.first + len(block.starts) - 1
        raise ValueError(f"{path}: line {line} has no newline: the file ends in it")
