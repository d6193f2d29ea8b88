"""Thrashing as UVM sees it: detection, throttling, pinning and forgetting, worked by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuhmm.coalesce.drivers.uvm.thrashing import (
    BlockThrashing,
    Cause,
    Event,
    SpaceThrashing,
    ThrashingSettings,
)
from gpuhmm.coalesce.drivers.uvm.thrashing_hint import (
    CPU,
    GPU,
    HintKind,
    PageThrashing,
    Reach,
    migration_hint,
)

NONE, PIN, THROTTLE = HintKind.NONE, HintKind.PIN, HintKind.THROTTLE
LAPSE = 500_000
#: A multiple of 64, so that times of pages are exact where steps are.
T0 = 6_400_000
STEP = 64_000
PAGE = 5


def block(**settings):
    return BlockThrashing(SpaceThrashing(ThrashingSettings(**{"adjust_lapse": False, **settings})))


def migrate(known, processor, now, page=PAGE, **options):
    known.notify(page, page + 1, processor, now, **options)


def thrashes(known, now=T0):
    """Let the page thrash: five migrations, of which the first makes it to no page's account."""
    for i in range(5):
        migrate(known, (GPU, CPU)[i % 2], now + i * STEP)
    return now + 4 * STEP


def test_three_events_within_a_lapse_are_thrashing():
    known = block()
    migrate(known, GPU, T0)
    assert known.pages is None
    migrate(known, CPU, T0 + STEP)  # the pages are kept from here on
    migrate(known, GPU, T0 + 2 * STEP)
    migrate(known, CPU, T0 + 3 * STEP)
    assert known.pages[PAGE].events == 2
    assert not known.thrashing_pages().any()
    assert known.hint(PAGE, GPU, T0 + 4 * STEP).kind == NONE
    migrate(known, GPU, T0 + 4 * STEP)
    assert known.thrashing_pages().nonzero()[0].tolist() == [PAGE]


def test_one_processor_alone_keeps_no_pages():
    known = block()
    for i in range(9):
        migrate(known, GPU, T0 + i * STEP)
    assert known.pages is None


@pytest.mark.parametrize(("late", "kept"), [(0, True), (1, False)])
def test_pages_are_kept_when_two_processors_meet_within_a_lapse(late, kept):
    known = block()
    migrate(known, GPU, T0)
    migrate(known, CPU, T0 + LAPSE + late)
    assert (known.pages is not None) == kept


def test_a_late_event_forgets_a_thrashing_page():
    known = block()
    now = thrashes(known)
    migrate(known, CPU, now + LAPSE + 1)
    assert not known.thrashing_pages().any()
    assert known.pages[PAGE].events == known.pages[PAGE].last_time == 0


def test_evictions_and_other_migrations():
    known = block()
    now = thrashes(known)
    migrate(known, CPU, now + 1, cause=Cause.EVICTION)
    assert known.pages[PAGE].last_time == now
    migrate(known, CPU, now + 1, page=PAGE + 1, cause=Cause.OTHER)
    assert known.thrashing == {PAGE}
    migrate(known, CPU, now + 1, cause=Cause.OTHER)
    assert not known.thrashing


def test_the_first_goes_free_and_the_other_is_throttled():
    known = block()
    now = thrashes(known) + STEP
    assert known.hint(PAGE, CPU, now, resident=[GPU]).kind == NONE
    end = (now + LAPSE) // 64 * 64
    hint = known.hint(PAGE, GPU, now + 10, resident=[CPU])
    assert (hint.kind, hint.until) == (THROTTLE, end)
    again = known.hint(PAGE, GPU, now + 20, resident=[CPU])
    assert (again.kind, again.until) == (THROTTLE, end)
    assert known.pages[PAGE].throttles == 1
    # Events go on, and the period ends: now the GPU goes free.
    migrate(known, CPU, now + 30)
    migrate(known, CPU, end - 10)
    assert known.hint(PAGE, GPU, end + 64, resident=[CPU]).kind == NONE
    assert known.hint(PAGE, CPU, end + 65, resident=[GPU]).kind == THROTTLE


def test_a_period_has_its_last_moment():
    known = block()
    now = thrashes(known)
    assert known.hint(PAGE, CPU, now + 64).kind == NONE
    end = known.pages[PAGE].throttle_end
    assert end == now + 64 + LAPSE - LAPSE % 64
    migrate(known, CPU, end - 64)
    assert known.hint(PAGE, GPU, end).kind == THROTTLE
    assert known.hint(PAGE, GPU, end + 1).kind == NONE


def test_times_of_pages_are_in_steps_of_64():
    known = block()
    now = thrashes(known)
    migrate(known, CPU, now + 63)
    assert known.hint(PAGE, CPU, now + 1 + LAPSE).kind == NONE
    assert known.pages[PAGE].unthrottled is None


def test_long_after_the_last_event_nothing_is_done():
    known = block()
    now = thrashes(known)
    assert known.hint(PAGE, CPU, now + LAPSE + 1).kind == NONE
    assert known.pages[PAGE].unthrottled is None


def test_nobody_goes_free_twice_in_a_row():
    known = block()
    now = thrashes(known)
    assert known.hint(PAGE, CPU, now + 64).kind == NONE
    later = now + 64 + LAPSE + 64
    migrate(known, CPU, now + 128)
    migrate(known, CPU, later - 64)
    # The CPU begins the second period as well: it is held off, and who comes next goes free.
    assert known.hint(PAGE, CPU, later, resident=[CPU]).kind == THROTTLE
    assert known.hint(PAGE, GPU, later + 64).kind == NONE
    assert known.pages[PAGE].unthrottled == GPU


def until_pinned(known, preferred=None):
    """Let CPU and GPU take turns until a hint pins; return it, its time and how many throttled."""
    now = thrashes(known)
    for throttled in range(40):
        free, held = ((CPU, GPU), (GPU, CPU))[throttled % 2]
        begun = now + 640
        hint = known.hint(PAGE, free, begun, [held], preferred)
        if hint.kind == PIN:
            return hint, begun, throttled
        assert hint.kind == NONE
        migrate(known, free, begun)
        assert known.hint(PAGE, held, begun + 64, [free], preferred).kind == THROTTLE
        # Once more within the period, so that the next begins within a lapse.
        migrate(known, free, begun + LAPSE - 640)
        now = (begun + LAPSE) // 64 * 64
    raise AssertionError("never pinned")


def test_ten_throttles_pin_the_page():
    known = block()
    hint, now, throttled = until_pinned(known)
    assert throttled == 10
    # Ten periods, the CPU first: the eleventh is the CPU's.
    assert (hint.residency, hint.processors) == (CPU, {CPU, GPU})
    assert known.pages[PAGE].pinned
    assert known.pages[PAGE].throttles == 0
    # The GPU maps it where it is.
    mapped = known.hint(PAGE, GPU, now + 64, resident=[CPU])
    assert (mapped.kind, mapped.residency) == (PIN, CPU)
    assert known.pins == 1


def test_a_page_pinned_to_the_gpu_is_out_of_reach_of_the_cpu():
    known = block(pin_threshold=1)
    hint, now, throttled = until_pinned(known)
    assert (throttled, hint.residency) == (1, GPU)
    assert known.hint(PAGE, CPU, now + 64, resident=[GPU]).kind == THROTTLE
    # In the next period the CPU goes free: both reach its memory.
    later = now + LAPSE + 640
    moved = known.hint(PAGE, CPU, later, resident=[GPU])
    assert (moved.kind, moved.residency) == (PIN, CPU)
    assert known.pins == 1


def test_migrations_of_pinned_pages_are_no_events():
    known = block(pin_threshold=1)
    _, now, _ = until_pinned(known)
    last = known.pages[PAGE].last_time
    migrate(known, GPU, now + 640)
    assert known.pages[PAGE].last_time == last


def test_revocations_throttle_pinned_pages():
    known = block(pin_threshold=1)
    hint, now, _ = until_pinned(known)
    assert hint.residency == GPU
    migrate(known, CPU, now + 64, event=Event.REVOCATION)
    assert known.pages[PAGE].revoked
    assert known.hint(PAGE, CPU, now + 128, resident=[GPU]).kind == THROTTLE
    assert known.pages[PAGE].throttles == 0
    assert known.hint(PAGE, GPU, now + 192, resident=[GPU]).kind == PIN


def test_pins_end_after_300_lapses():
    known = block(pin_threshold=1)
    _, now, _ = until_pinned(known)
    deadline = now + 300 * LAPSE
    assert known.space.unpin(deadline - 20_001) == []
    assert known.space.unpin(deadline - 20_000) == [(known, PAGE)]
    assert not known.pages[PAGE].pinned
    assert not known.thrashing_pages().any()
    assert known.space.unpin(deadline) == []


def test_pages_that_are_unmapped_are_no_longer_pinned():
    known = block(pin_threshold=1)
    _, now, _ = until_pinned(known)
    known.reset_pages(0, PAGE)
    assert known.pages[PAGE].pinned
    known.reset_pages(PAGE, PAGE + 1)
    assert not known.pages[PAGE].pinned
    assert known.space.unpin(now + 1000 * LAPSE) == []


def test_pinned_for_ever():
    known = block(pin_threshold=1, pin=0)
    _, now, _ = until_pinned(known)
    assert known.space.unpin(now + 10**15) == []
    assert known.pages[PAGE].pinned


def test_a_calm_epoch_resets_a_block_four_times():
    known = block()
    now = T0
    for resets in range(1, 5):
        now = thrashes(known, now)
        assert known.hint(PAGE, GPU, now + 2000 * LAPSE).kind == NONE
        assert known.pages is not None
        assert known.hint(PAGE, GPU, now + 2000 * LAPSE + 1).kind == NONE
        assert known.pages is None
        assert known.resets == resets
        now += 3000 * LAPSE
    now = thrashes(known, now)
    known.hint(PAGE, GPU, now + 2000 * LAPSE + 1)
    assert known.pages is not None


def test_a_block_that_had_a_pin_is_never_reset():
    known = block(pin_threshold=1)
    _, now, _ = until_pinned(known)
    known.space.unpin(now + 300 * LAPSE)
    known.hint(PAGE, GPU, now + 5000 * LAPSE)
    assert known.pages is not None
    assert known.resets == 0


def test_short_intervals_lengthen_the_lapse():
    space = SpaceThrashing()
    space.vote(LAPSE - 1)
    assert (space.lapse_ns, space.votes) == (562_500, 0)
    assert space.nap_ns == LAPSE
    for _ in range(31):
        space.vote(10**9)
    assert (space.lapse_ns, space.votes) == (562_500, 31)
    space.vote(10**9)
    assert (space.lapse_ns, space.votes) == (632_812, 16)


def test_the_lapse_ends_between_five_microseconds_and_half_a_second():
    space = SpaceThrashing()
    for _ in range(200):
        space.vote(0)
        assert space.lapse_ns <= 500_000_000 + 50_000_000
        if space.lapse_ns >= 500_000_000:
            break
    longest = space.lapse_ns
    space.votes = 31
    space.vote(10**12)
    assert space.lapse_ns == longest - longest // 8
    assert space.votes == 16


def test_a_lapse_of_the_user_stays():
    space = SpaceThrashing(ThrashingSettings(lapse_us=100))
    space.vote(0)
    assert space.lapse_ns == 100_000


@pytest.mark.parametrize(
    ("page", "requester", "closest", "preferred", "coherent", "expected"),
    [
        # The preferred location is within reach of both.
        ({}, GPU, GPU, CPU, False, (PIN, CPU)),
        ({}, CPU, CPU, GPU, True, (PIN, GPU)),
        # Fast links: where the page is, but rather with the GPU than with the CPU.
        ({}, GPU, GPU, None, True, (PIN, GPU)),
        ({}, CPU, GPU, None, True, (PIN, GPU)),
        ({}, GPU, CPU, None, True, (PIN, GPU)),
        ({}, CPU, CPU, None, True, (NONE, None)),
        # The GPU is preferred, which the CPU does not reach.
        ({"unthrottled": CPU}, GPU, CPU, GPU, False, (THROTTLE, None)),
        ({"unthrottled": GPU}, GPU, CPU, GPU, False, (NONE, None)),
        ({"unthrottled": GPU, "throttles": 10}, GPU, CPU, GPU, False, (PIN, GPU)),
        ({"unthrottled": CPU, "pinned_residency": GPU}, GPU, GPU, GPU, False, (PIN, GPU)),
        ({"unthrottled": GPU, "pinned_residency": CPU}, GPU, CPU, GPU, False, (PIN, GPU)),
        ({"unthrottled": CPU, "pinned_residency": CPU}, GPU, CPU, GPU, False, (THROTTLE, None)),
        # Nobody is preferred.
        ({"unthrottled": GPU, "pinned_residency": GPU}, GPU, GPU, None, False, (PIN, CPU)),
        ({"unthrottled": CPU, "pinned_residency": GPU}, GPU, GPU, None, False, (PIN, GPU)),
        ({"unthrottled": GPU, "pinned_residency": GPU}, CPU, GPU, None, False, (THROTTLE, None)),
        ({"unthrottled": CPU, "throttles": 9}, CPU, GPU, None, False, (NONE, None)),
        ({"unthrottled": CPU, "throttles": 10}, CPU, GPU, None, False, (PIN, CPU)),
    ],
)
def test_hints(page, requester, closest, preferred, coherent, expected):
    known = PageThrashing(processors={CPU, GPU}, pinned="pinned_residency" in page, **page)
    assert migration_hint(known, requester, closest, preferred, 10, Reach(coherent)) == expected


def test_bad_arguments():
    with pytest.raises(ValueError, match="threshold must be 1 to 7"):
        ThrashingSettings(threshold=8)
    with pytest.raises(ValueError, match="pages must be some of 512"):
        block().notify(511, 513, GPU, T0)
    with pytest.raises(ValueError, match="a processor must be 0"):
        block().hint(0, 2, T0)


def consistent(known):
    """What the driver asserts of a block after each step (thrashing_state_checks)."""
    threshold = known.space.settings.threshold
    pins = {page for _, owner, page in known.space.pinned if owner is known}
    for number, page in enumerate(known.pages or []):
        assert page.throttled <= page.processors
        assert (number in known.thrashing) <= (page.events >= threshold)
        assert page.pinned == (page.pinned_residency is not None) == (number in pins)
        if page.pinned:
            assert number in known.thrashing
            assert page.throttles == 0
        elif page.throttled:
            assert page.throttles > 0
            assert number in known.thrashing


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, CPU, GPU]),
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([CPU, GPU]),
            st.sampled_from([1, 100, 64_000, 250_000, 600_000, 10**8, 2 * 10**9]),
        ),
        min_size=20,
        max_size=120,
    ),
)
def test_random_faults_leave_what_the_driver_asserts(coherent, adjust_lapse, preferred, faults):
    known = block(coherent=coherent, adjust_lapse=adjust_lapse, threshold=2, pin_threshold=2)
    resident = {}
    now = T0
    for page, processor, later in faults:
        now += later
        known.space.unpin(now)
        hint = known.hint(page, processor, now, [resident[page]] if page in resident else [], preferred)
        consistent(known)
        if hint.kind == THROTTLE:
            assert hint.until >= now
            continue
        goes_to = processor
        if hint.kind == PIN:
            assert hint.processors >= {processor}
            goes_to = hint.residency
        if resident.get(page) != goes_to:
            resident[page] = goes_to
            migrate(known, goes_to, now, page=page)
        consistent(known)
