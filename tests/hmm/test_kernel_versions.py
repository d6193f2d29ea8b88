"""What differs between kernels, rule by rule, on both sides of each.

Source: mm/hmm.c, mm/pagewalk.c (v5.18 to v7.3).
"""

from errno import EFAULT, EINVAL, ENOMEM

import numpy as np
import pytest
from spaces import BASE, RW, words

import gpuhmm
from gpuhmm.mm import handler as bits
from gpuhmm.mm.entry import encode_swap
from gpuhmm.mm.profile import PROFILES

VALID, WRITE, ERROR = (int(bit) for bit in (gpuhmm.HMM_PFN_VALID, gpuhmm.HMM_PFN_WRITE, gpuhmm.HMM_PFN_ERROR))
FAULT = VALID
MIB2 = 1 << 21
OWNER = 0xABCD
PRIVATE = 0x10_0000
KERNELS = tuple(PROFILES)


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.param


class Answers:
    """Notes every call and gives the next answer; without one it maps the page."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []

    def handle_mm_fault(self, mm, vma, va, flags):
        self.calls.append(va)
        if self.answers:
            return self.answers.pop(0)
        if mm.entry(va, 2) >> 63 and not mm.entry(va, 2) & 1:
            mm.set_entry(va, 2, 0)  # a device-private PMD
        mm.make_tables(va, 1)
        mm.set_entry(va, 1, (va >> 12 & 0xFFFF) << 12 | 0x67)
        return 0

    def migration_entry_wait(self, mm, va, level):
        raise AssertionError("no migration here")


def space(kernel, npages=2048, faults=None, **options):
    mm = gpuhmm.AddressSpace(
        kernel=kernel, faults=faults, device_private=[(PRIVATE, PRIVATE + 4096, OWNER)], **options
    )
    mm.mmap(BASE, BASE + npages * 4096, RW)
    return mm


def holding(kernel, level, entry, **options):
    """Return a space whose first entry of ``level`` is ``entry``."""
    mm = space(kernel, 1 << 18 if level == 3 else 2048, **options)
    mm.make_tables(BASE, level)
    mm.set_entry(BASE, level, entry)
    return mm


def walk(mm, backend, npages=1, first=0, words_in=None, **request):
    start = BASE + first * 4096
    notifier = mm.notifier(start, start + npages * 4096)
    hmm_pfns = np.zeros(npages, dtype=np.uint64) if words_in is None else words_in.copy()
    range_ = gpuhmm.HmmRange(
        notifier, start, start + npages * 4096, hmm_pfns, notifier_seq=notifier.read_begin(), **request
    )
    return gpuhmm.hmm_range_fault(range_, backend), range_.hmm_pfns.tolist(), range_


def order(kernel, value):
    return value << PROFILES[kernel].hmm_pfn_order_shift


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bit", [58, 57])
def test_a_special_page_is_for_devices_if_it_is_devmap(backend, kernel, bit):
    """Bit 58 is DEVMAP up to v6.5, bit 57 up to v6.16; afterwards no page is."""
    mm = holding(kernel, 1, 5 << 12 | 0x225 | 1 << bit)
    is_devmap = (kernel, bit) in (("v5.18", 58), ("v6.1", 58), ("v6.12", 57))
    assert walk(mm, backend)[1] == [5 | VALID if is_devmap else ERROR]
    assert walk(mm, backend, default_flags=FAULT)[0] == (0 if is_devmap else -EFAULT)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_pmd_with_bit_57_is_a_leaf_of_v6_12_and_bad_elsewhere(backend, kernel):
    mm = holding(kernel, 2, 512 << 12 | 0x67 | 1 << 57)
    expected = 512 | VALID | WRITE | order(kernel, 9) if kernel == "v6.12" else ERROR
    assert walk(mm, backend)[1] == [expected]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_huge_pud_is_split_or_from_v6_17_on_a_leaf(backend, kernel):
    entry = 1 << 30 | 0xE7
    mm = holding(kernel, 3, entry)
    _, found, range_ = walk(mm, backend, 2, first=3)
    if kernel in ("v5.18", "v6.1", "v6.12"):
        assert (found, mm.entry(BASE, 3), range_.stats.splits) == ([0, 0], 0, 1)
    else:
        word = (1 << 18) + 3 | VALID | WRITE | order(kernel, 18)
        assert (found, mm.entry(BASE, 3), range_.stats.splits) == ([word, word + 1], entry, 0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_huge_pud_without_p_is_a_hole_from_v6_12_on(backend, kernel):
    entry = 1 << 30 | 0xE6
    mm = holding(kernel, 3, entry)
    assert walk(mm, backend)[1] == [0]
    assert mm.entry(BASE, 3) == (0 if kernel in ("v5.18", "v6.1") else entry)


def private_pmd(kernel, write):
    profile = PROFILES[kernel]
    return encode_swap(profile.swp_device_write if write else profile.swp_device_read, PRIVATE + 512)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("write", [False, True])
def test_an_own_private_pmd_gives_its_first_pfn_wherever_the_range_begins(backend, kernel, write):
    mm = holding(kernel, 2, private_pmd(kernel, write))
    asks = {"dev_private_owner": OWNER, "default_flags": FAULT | WRITE}
    ret, found, _ = walk(mm, backend, 2, first=5, **asks)
    if kernel in ("v6.18", "v7.0", "v7.3"):
        word = PRIVATE + 512 | VALID | order(kernel, 9) | (WRITE if write else 0)
        assert (ret, found) == (0, [word, word + 1])
    else:
        assert (ret, found) == (-EFAULT, [0, 0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_somebody_elses_private_pmd_is_faulted_back(backend, kernel):
    known = kernel in ("v6.18", "v7.0", "v7.3")
    handler = Answers()
    mm = holding(kernel, 2, private_pmd(kernel, True), faults=handler)
    assert walk(mm, backend, 2, first=5, dev_private_owner=7)[:2] == (0, [ERROR, ERROR])
    ret, _, _ = walk(mm, backend, 2, first=5, dev_private_owner=7, default_flags=FAULT)
    assert ret == (0 if known else -EFAULT)
    assert handler.calls == ([BASE + 5 * 4096, BASE + 6 * 4096] if known else [])


def test_a_wave_after_a_stop_does_not_cut_a_private_pmd(backend):
    """The walk restarts at page 100; 1024 pages on, where a wave would end, is in the third PMD."""
    mm = space("v6.18", 2048, faults=Answers())
    mm.map_pfns(BASE, np.arange(100, dtype=np.uint64))
    mm.map_pfns(BASE + MIB2, words(1 << 20), level=2)
    mm.set_entry(BASE + 2 * MIB2, 2, private_pmd("v6.18", True))
    mm.map_pfns(BASE + 3 * MIB2, words(1 << 21), level=2)
    ret, found, range_ = walk(mm, backend, 2048, default_flags=FAULT, dev_private_owner=OWNER)
    assert (ret, range_.stats.walks, range_.stats.faults) == (0, 2, 412)
    word = PRIVATE + 512 | VALID | WRITE | order("v6.18", 9)
    assert found[1024:1536] == list(range(word, word + 512))


@pytest.mark.parametrize("kernel", KERNELS[1:])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 8])
def test_markers_are_empty_or_from_v7_0_on_only_those_of_userfaultfd(backend, kernel, offset):
    handler = Answers()
    entry = encode_swap(PROFILES[kernel].swp_pte_marker, offset)
    mm = holding(kernel, 1, entry, faults=handler)
    assert walk(mm, backend)[:2] == (0, [0])
    is_empty = kernel not in ("v7.0", "v7.3") or offset & 1
    assert walk(mm, backend, default_flags=FAULT)[0] == (0 if is_empty else -EFAULT)
    assert handler.calls == ([BASE] if is_empty else [])


@pytest.mark.parametrize("kernel", KERNELS)
def test_swap_type_0_with_offset_0_is_no_swap_entry_from_v7_0_on(backend, kernel):
    for offset in (0, 1):
        handler = Answers()
        mm = holding(kernel, 1, encode_swap(0, offset) | 1 << 2, faults=handler)
        assert walk(mm, backend)[:2] == (0, [0])
        is_swap = kernel not in ("v7.0", "v7.3") or offset
        assert walk(mm, backend, default_flags=FAULT)[0] == (0 if is_swap else -EFAULT)
        assert handler.calls == ([BASE] if is_swap else [])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shstk", [False, True])
def test_d_without_rw_is_writable_with_shadow_stacks(backend, kernel, shstk):
    counts = shstk and kernel not in ("v5.18", "v6.1")
    write = WRITE if counts else 0
    handler = Answers()
    mm = holding(kernel, 1, 5 << 12 | 0x65, shstk=shstk, faults=handler)
    assert walk(mm, backend)[1] == [5 | VALID | write]
    walk(mm, backend, default_flags=FAULT | WRITE)
    assert handler.calls == ([] if counts else [BASE])
    mm = holding(kernel, 2, 512 << 12 | 0xE5, shstk=shstk)
    assert walk(mm, backend)[1] == [512 | VALID | write | order(kernel, 9)]
    # A whole table, which loops of plain pages take.
    mm = space(kernel, shstk=shstk)
    mm.map_pfns(BASE, np.arange(1024, dtype=np.uint64), flags=0x65)
    assert walk(mm, backend, 1024)[1] == [page | VALID | write for page in range(1024)]


def test_shadow_stacks_need_pse_in_a_pmd_and_never_count_in_a_pud(backend):
    mm = holding("v6.12", 2, 512 << 12 | 0x65 | 1 << 57, shstk=True)
    assert walk(mm, backend)[1] == [512 | VALID | order("v6.12", 9)]
    mm = holding("v6.17", 3, 1 << 30 | 0xE5, shstk=True)
    assert walk(mm, backend)[1] == [1 << 18 | VALID | order("v6.17", 18)]


STICKY = 7 << 58


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("request_", [0, FAULT])
def test_words_keep_what_the_caller_mapped_from_v6_16_on(backend, kernel, request_):
    """Pages, a huge page and what lies behind the area: each next to the bits of its input."""
    kept = STICKY if kernel not in ("v5.18", "v6.1", "v6.12") else 0
    mm = space(kernel, 1024, faults=Answers())
    mm.map_pfns(BASE, np.arange(512, dtype=np.uint64))
    mm.map_pfns(BASE + MIB2, words(512), level=2)
    words_in = np.zeros(1025, dtype=np.uint64)
    words_in[[0, 7, 512, 1023, 1024]] = STICKY
    words_in[8] = 1 << 59 | 0x1234
    ret, found, _ = walk(mm, backend, 1025, words_in=words_in, default_flags=request_)
    plain = [page | VALID | WRITE for page in range(512)]
    huge = [512 + page | VALID | WRITE | order(kernel, 9) for page in range(512)]
    expected = [*plain, *huge, ERROR]
    for page in (0, 7, 512, 1023, 1024):
        expected[page] |= kept
    expected[8] |= 1 << 59 & kept
    if request_:
        expected[1024] = STICKY  # never reached: an input
    assert (ret, found) == (-EFAULT if request_ else 0, expected)


def test_bits_that_are_kept_ask_for_nothing_and_survive_a_restart(backend):
    mm = space("v6.17", 4, faults=Answers())
    mm.make_tables(BASE, 1)
    ret, found, range_ = walk(
        mm, backend, 4, words_in=words(STICKY, 0, STICKY, STICKY | FAULT), pfn_flags_mask=(1 << 64) - 1
    )
    assert (ret, range_.stats.faults) == (0, 1)
    assert found == [STICKY, 0, STICKY, STICKY | VALID | WRITE | 3]


@pytest.mark.parametrize(
    ("result", "errno"),
    [
        (bits.VM_FAULT_OOM, ENOMEM),
        (bits.VM_FAULT_OOM | bits.VM_FAULT_SIGBUS, ENOMEM),
        (bits.VM_FAULT_SIGBUS, EFAULT),
        (bits.VM_FAULT_SIGSEGV, EFAULT),
        (bits.VM_FAULT_HWPOISON, EFAULT),
        (bits.VM_FAULT_HWPOISON_LARGE, EFAULT),
        (bits.VM_FAULT_FALLBACK, EINVAL),
        (bits.VM_FAULT_FALLBACK | bits.VM_FAULT_MAJOR, EINVAL),
        (bits.VM_FAULT_FALLBACK | bits.VM_FAULT_SIGSEGV, EFAULT),
    ],
)
def test_the_errno_of_a_fault_tells_its_kind_from_v7_3_on(backend, result, errno):
    for kernel in KERNELS:
        handler = Answers(result)
        ret, _, _ = walk(space(kernel, 2, faults=handler), backend, 2, default_flags=FAULT)
        assert ret == (-errno if kernel == "v7.3" else -EFAULT)
        assert handler.calls == [BASE]


def test_no_memory_is_an_exception_of_its_own(backend):
    mm = space("v7.3", 1, faults=Answers(bits.VM_FAULT_OOM))
    with pytest.raises(gpuhmm.HmmMemoryError, match="Cannot allocate memory"):
        gpuhmm.range_fault(mm, BASE, BASE + 4096, request="read", backend=backend)
