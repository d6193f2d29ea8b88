"""Intervals and the question which of them meet a range.

Linux keeps the interval notifiers of a space in a red-black tree; what matters of it is the question, and
the order of the answers.

Source: include/linux/interval_tree_generic.h (v5.18).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class _Node(NamedTuple):
    """Where an item starts, the how many-th it was to come, and the item, which is never compared."""

    start: int
    serial: int
    last: int


class IntervalTree(Generic[Item]):
    """Items over inclusive intervals ``[start, last]``; the same interval may come several times.

    Intervals are kept by the number of bits of their length, sorted by start.  Of one such class only those
    that start less than its greatest length below a range can meet it: a question costs two binary
    searches a class, and as many steps as there are answers or near misses.
    """

    def __init__(self) -> None:
        self._classes: dict[int, list[_Node]] = {}
        self._items: dict[int, Item] = {}
        self._nodes: dict[int, _Node] = {}  # by id of the item
        self._serial = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, item: object) -> bool:
        return id(item) in self._nodes

    def __iter__(self) -> Iterator[Item]:
        """Every item, by start and then in the order of insertion."""
        return iter([self._items[node.serial] for node in sorted(self._nodes.values())])

    def insert(self, start: int, last: int, item: Item) -> None:
        """Add ``item`` over ``[start, last]``.  ValueError if it is in already, or ``last < start``."""
        if last < start:
            raise ValueError(f"an interval must have start <= last (got {start:#x}, {last:#x})")
        if item in self:
            raise ValueError(f"an item must be inserted once only (got {item!r} again)")
        self._serial += 1
        node = _Node(start, self._serial, last)
        insort(self._classes.setdefault((last - start).bit_length(), []), node)
        self._items[node.serial] = item
        self._nodes[id(item)] = node

    def remove(self, item: Item) -> None:
        """Take ``item`` out.  KeyError if it is not in."""
        node = self._nodes.pop(id(item))
        size = (node.last - node.start).bit_length()
        nodes = self._classes[size]
        del nodes[bisect_left(nodes, node)]
        if not nodes:
            del self._classes[size]
        del self._items[node.serial]

    def overlapping(self, start: int, last: int) -> list[Item]:
        """Return the items that meet ``[start, last]``, by start and then in the order of insertion."""
        found: list[_Node] = []
        for size, nodes in self._classes.items():
            low = bisect_left(nodes, (start - (1 << size) + 1,))
            high = bisect_right(nodes, (last, self._serial + 1))
            found += [node for node in nodes[low:high] if node.last >= start]
        found.sort()
        return [self._items[node.serial] for node in found]
