"""Page tables: the lowest table over an address, and the ways in which entries are stored."""

import numpy as np
import pytest

from gpuhmm.mm.profile import V5_18
from gpuhmm.mm.tables import NO_CHILD, PageTables

VA = 0x1234_5678_9000
TABLE = 0x67  # P, RW, USER, A, D: _PAGE_TABLE


def tables(levels, down_to):
    """Return tables over VA from the top to level ``down_to``, with PFN 100 + level each."""
    made = PageTables(levels, 1, V5_18)
    for level in range(levels, down_to, -1):
        made.set_entry(VA, level, (100 + level - 1) << 12 | TABLE)
    return made


@pytest.mark.parametrize("levels", [4, 5])
def test_the_lowest_table_is_the_last_that_entries_lead_to(levels):
    for level in range(levels, 0, -1):
        made = tables(levels, level)
        assert made.lowest(VA) == level
        assert made.row(VA, level) != NO_CHILD
        assert made.lowest(VA ^ 1 << 11 + 9 * levels) == levels  # the top table has no entry there


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_run_of_entries_takes_the_tables_behind_it_away(level):
    made = tables(4, 1)
    log, clock = made.watch(), made.clock
    row, slot = made.row(VA, level), VA >> 12 + 9 * (level - 1) & 511
    made.store(level, row, slot - 1, np.array([5, 6, 7], dtype=np.uint64))
    shift = 12 + 9 * (level - 1)
    assert [made.entry(VA + (i << shift), level) for i in (-2, -1, 0, 1, 2)] == [0, 5, 6, 7, 0]
    assert made.lowest(VA) == level
    assert (log.leaf, log.upper) == (({row}, set()) if level == 1 else (set(), {row}))
    assert made.clock > clock


def test_an_entry_that_leads_to_a_given_table_adds_all_below_it():
    made = PageTables(4, 1, V5_18)
    pud, pmd, leaf = np.zeros((3, 512), dtype=np.uint64)
    pud[3], pmd[4], leaf[5] = 11 << 12 | TABLE, 12 << 12 | TABLE, 0xABC_0000_0067
    made.unreached = {10: pud, 11: pmd, 12: leaf}
    made.set_entry(0, 4, 10 << 12 | TABLE)
    assert made.unreached == {}
    assert made.entry(3 << 30 | 4 << 21 | 5 << 12, 1) == 0xABC_0000_0067
    assert [made.where[pfn][0] for pfn in (10, 11, 12)] == [3, 2, 1]
