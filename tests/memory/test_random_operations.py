"""Random sequences of operations on a family of processes, against a dictionary of what each must read.

After every step the page state is consistent, and whatever was stored is still there.
"""

from __future__ import annotations

import os
import random

import pytest

import gpuhmm
from gpuhmm import memory
from gpuhmm.memory import DeviceMemory, File, PhysicalMemory, check_invariants, load, store
from gpuhmm.mm.vma import VM_HUGEPAGE, VM_READ, VM_SHARED, VM_WRITE

PAGE = 4096
HUGE = 2 << 20
BASE = 1 << 40
RW = VM_READ | VM_WRITE
#: Areas: first address, pages, flags. The huge one has neighbours, so that operations cut it.
SMALL = BASE
SHARED = BASE + 64 * PAGE
FILE = BASE + 128 * PAGE
LARGE = BASE + HUGE
SIZES = {SMALL: 24, SHARED: 16, FILE: 24, LARGE: 1024}
SEEDS = range(int(os.environ.get("GPUHMM_RANDOM_OPERATIONS", "12")))


class Family:
    """Processes on one machine, and what every page of each must hold."""

    def __init__(self, seed: int, kernel: str) -> None:
        self.random = random.Random(seed)
        self.memory = PhysicalMemory()
        mm = gpuhmm.AddressSpace(kernel=kernel, memory=self.memory)
        mm.mmap(SMALL, SMALL + SIZES[SMALL] * PAGE)
        mm.mmap(SHARED, SHARED + SIZES[SHARED] * PAGE, RW | VM_SHARED)
        file = File(self.memory, SIZES[FILE] * PAGE, "regular")
        mm.mmap(FILE, FILE + SIZES[FILE] * PAGE, RW, file=file)
        mm.mmap(LARGE, LARGE + SIZES[LARGE] * PAGE, RW | VM_HUGEPAGE)
        self.device = DeviceMemory(self.memory, 0xD0, 4096)
        self.spaces = [mm]
        self.private: list[dict[int, int]] = [{}]
        self.shared: dict[int, int] = {}
        self.migrations: list[memory.Migration] = []
        self.count = 0

    def held(self, i: int, va: int) -> dict[int, int]:
        return self.shared if SHARED <= va < SHARED + SIZES[SHARED] * PAGE else self.private[i]

    def pick(self) -> tuple[int, int, int]:
        """Return a process and a range ``[start, end)`` inside one of its areas."""
        i = self.random.randrange(len(self.spaces))
        first, npages = self.random.choice(list(SIZES.items()))
        start = self.random.randrange(npages)
        most = npages - start
        length = most if self.random.random() < 0.2 else self.random.randint(1, min(most, 12))
        return i, first + start * PAGE, first + (start + length) * PAGE

    def step(self) -> str:
        name = self.random.choice(STEPS)
        i, start, end = self.pick()
        getattr(self, name)(i, start, end)
        return f"{name} in process {i} of [{start:#x}, {end:#x})"

    def write(self, i: int, start: int, end: int) -> None:
        for va in range(start, min(end, start + 8 * PAGE), PAGE):
            self.count += 1
            assert store(self.spaces[i], va, self.count) == 0
            self.held(i, va)[va] = self.count

    def read(self, i: int, start: int, end: int) -> None:
        for va in range(start, min(end, start + 8 * PAGE), PAGE):
            assert load(self.spaces[i], va) == self.held(i, va).get(va, 0), hex(va)

    def walk(self, i: int, start: int, end: int) -> None:
        request = self.random.choice(["none", "read", "write"])
        owner = self.device.owner  # v5.18 faults no page of somebody else's device
        gpuhmm.range_fault(
            self.spaces[i], start, end, request=request, dev_private_owner=owner, backend="reference"
        )

    def fork(self, i: int, start: int, end: int) -> None:
        if len(self.spaces) < 4:
            child = memory.fork(self.spaces[i])
            assert isinstance(child, gpuhmm.AddressSpace)
            self.spaces.append(child)
            self.private.append(dict(self.private[i]))

    def exit(self, i: int, start: int, end: int) -> None:
        if len(self.spaces) > 1:
            memory.exit_mmap(self.spaces.pop(i))
            del self.private[i]

    def swap_out(self, i: int, start: int, end: int) -> None:
        assert memory.swap_out(self.spaces[i], start, end) >= 0

    def dontneed(self, i: int, start: int, end: int) -> None:
        assert memory.madvise(self.spaces[i], start, end, memory.MADV_DONTNEED) == 0
        for va in range(start, end, PAGE):
            if self.held(i, va) is not self.shared:
                self.private[i].pop(va, None)

    def migrate(self, i: int, start: int, end: int) -> None:
        migration = memory.migrate_pages_start(self.spaces[i], start, end)
        assert isinstance(migration, memory.Migration)
        self.migrations.append(migration)

    def end_migration(self, i: int, start: int, end: int) -> None:
        if self.migrations:
            migration = self.migrations.pop()
            if not migration.ended:
                memory.migrate_pages_end(migration)

    def to_device(self, i: int, start: int, end: int) -> None:
        assert not isinstance(memory.migrate_to_device(self.spaces[i], start, end, self.device), int)

    def to_ram(self, i: int, start: int, end: int) -> None:
        memory.migrate_to_ram(self.spaces[i], start, end, self.device)

    def exclusive(self, i: int, start: int, end: int) -> None:
        memory.make_device_exclusive_range(self.spaces[i], start, min(end, start + 4 * PAGE), 0xE)

    def numa(self, i: int, start: int, end: int) -> None:
        assert memory.change_prot_numa(self.spaces[i], start, end) >= 0

    def protect(self, i: int, start: int, end: int) -> None:
        mm = self.spaces[i]
        for prot in (self.random.choice([0, VM_READ]), RW):
            assert memory.mprotect(mm, start, end, prot) == 0

    def pin(self, i: int, start: int, end: int) -> None:
        mm, npages = self.spaces[i], min((end - start) // PAGE, 4)
        pfns = memory.pin_user_pages(mm, start, npages, write=self.random.random() < 0.5)
        assert not isinstance(pfns, int)
        memory.swap_out(mm, start, end)
        self.read(i, start, end)
        memory.unpin_user_pages(mm, pfns)


STEPS = [
    *["write"] * 4,
    *["read"] * 3,
    "walk",
    "fork",
    "exit",
    "swap_out",
    "dontneed",
    "migrate",
    "end_migration",
    "to_device",
    "to_ram",
    "exclusive",
    "numa",
    "protect",
    "pin",
]


@pytest.mark.parametrize("kernel", ["v6.1", "v5.18"])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_operations(seed, kernel):
    family = Family(seed, kernel)
    done = []
    for _ in range(60):
        try:
            done.append(family.step())
            check_invariants(family.memory)
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"{error}, after\n" + "\n".join(done[-12:])) from error
    for i in range(len(family.spaces)):
        for first, npages in SIZES.items():
            for va in range(first, first + min(npages, 32) * PAGE, PAGE):
                assert load(family.spaces[i], va) == family.held(i, va).get(va, 0)
    for mm in list(family.spaces):
        memory.exit_mmap(mm)
    check_invariants(family.memory)
    cached = sum(len(file.cached()) for file in family.memory.files)
    held = sum(len(migration.destinations) * 2 for migration in family.memory.migrations)
    assert family.device.used == 0 or held
    assert family.memory.nr_used >= cached
    if not held:
        assert family.memory.nr_used == cached + (512 if family.memory.huge_zero_pfn is not None else 0)
