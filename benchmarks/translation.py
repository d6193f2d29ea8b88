"""Translation against volatility3's Intel layer, in one run: pages a second, and the ratio.

    python benchmarks/translation.py [--image FILE --cr3 X] [--pages N] [--backend cpu]

Without an image: tables for N pages of 4 KiB, of which 64 at a time lie side by side in memory.  Both
read the same tables; volatility3 walks a sample of the pages, since it would take minutes for all.
Compiling is not timed; every number is the best of several runs.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from volatility3.framework import contexts
from volatility3.framework.layers import intel

import gpuhmm
from gpuhmm.dump import load_tables
from gpuhmm.dump.volatility import PhysicalLayer
from gpuhmm.image import ReaderSource, open_image
from gpuhmm.translation import mappings, translate, translate_range

BASE = 0x7F00_0000_0000
LOW_48 = (1 << 48) - 1


def synthetic(pages):
    """Return memory with tables for ``pages`` pages, and CR3."""
    mm = gpuhmm.AddressSpace(root_pfn=1)
    mm.mmap(BASE, BASE + (pages << 12))
    rng = np.random.default_rng(1)
    pfns = np.arange(1 << 24, (1 << 24) + pages, dtype=np.uint64).reshape(-1, 64)
    mm.map_pfns(BASE, np.ascontiguousarray(pfns[rng.permutation(len(pfns))].reshape(-1)))
    table_pfns, tables = mm.tables()
    image = np.zeros((int(table_pfns.max()) + 1, 512), dtype="<u8")
    image[table_pfns.astype(int)] = tables
    data = image.tobytes()
    return ReaderSource(lambda at, size: data[at : at + size]), 1 << 12


def best(function, repeats):
    """Return the shortest time of some calls, in seconds."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--image")
    parser.add_argument("--cr3", type=lambda text: int(text, 0))
    parser.add_argument("--pages", type=int, default=1 << 24)
    parser.add_argument("--sample", type=int, default=100_000, help="pages that volatility3 translates")
    parser.add_argument("--backend", default="cpu")
    options = parser.parse_args()

    if options.image:
        memory, cr3 = open_image(options.image), options.cr3
    else:
        memory, cr3 = synthetic(options.pages)
    tables = load_tables(memory, cr3)
    runs = mappings(tables, split_by="address", backend=options.backend)
    counts = runs["npages"].astype(np.int64)
    total = int(counts.sum())
    inside = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    vas = np.repeat(runs["va"], counts) + (inside.astype(np.uint64) << np.uint64(12))
    out = np.empty(total, dtype=np.uint64)
    info = gpuhmm.resolve_backend(options.backend)
    print(f"gpuhmm {gpuhmm.__version__}, {info.name} back end ({info.device}); volatility3 LinuxIntel32e")
    print(f"{total} mapped pages of 4 KiB in {len(runs)} runs, {tables.nr_tables} tables")

    context = contexts.Context()
    context.add_layer(PhysicalLayer(context, "memory", memory))
    context.config["theirs.memory_layer"] = "memory"
    context.config["theirs.page_map_offset"] = cr3
    theirs = intel.LinuxIntel32e(context, "theirs", "theirs")

    # A stretch of consecutive pages, as many of them as the sample has.
    sample = vas[: options.sample] & np.uint64(LOW_48)
    as_ints = sample.tolist()

    def their_translate():
        theirs._translate_entry.cache_clear()
        for va in as_ints:
            theirs._translate(va)

    found = [theirs._translate(va)[0] for va in as_ints]
    assert found == translate(tables, vas[: len(as_ints)]).physical.tolist()

    span = int(sample[-1]) - int(sample[0]) + 4096

    def their_mapping():
        theirs._translate_entry.cache_clear()
        for _ in theirs.mapping(int(sample[0]), span, ignore_errors=True):
            pass

    start, npages = (BASE, options.pages) if not options.image else _densest(runs)
    range_out = np.empty(npages, dtype=np.uint64)

    def our_range():
        translate_range(tables, start, npages, backend=options.backend, out=range_out)

    rates = {}
    rates["volatility3: translate, page by page"] = len(as_ints) / best(their_translate, 3)
    rates["volatility3: mapping"] = len(as_ints) / best(their_mapping, 3)
    translate(tables, vas, backend=options.backend, out=out)
    our_range()
    rates["gpuhmm: translate, array of addresses"] = total / best(
        lambda: translate(tables, vas, backend=options.backend, out=out), 20
    )
    rates["gpuhmm: translate_range, consecutive pages"] = npages / best(our_range, 20)
    rates["gpuhmm: mappings, everything"] = total / best(
        lambda: mappings(tables, split_by="address", backend=options.backend), 20
    )
    fastest_of_theirs = max(rate for name, rate in rates.items() if name.startswith("volatility3"))
    for name, rate in rates.items():
        print(f"{name:45} {rate:15,.0f} pages/s  {rate / fastest_of_theirs:10,.1f}")


def _densest(runs):
    """Return start and pages of the 2^17 pages that begin at the run with most pages behind it."""
    ends = np.searchsorted(runs["va"], runs["va"] + np.uint64(1 << 29))
    sums = np.concatenate(([0], np.cumsum(runs["npages"].astype(np.int64))))
    start = int(runs["va"][int(np.argmax(sums[ends] - sums[:-1]))])
    return start, 1 << 17


if __name__ == "__main__":
    main()
