"""mmu_interval_notifier: sequence, tree, deferred insert and remove, callbacks, waiting."""

import errno
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import BASE, anonymous

from gpuhmm.mm.interval_tree import IntervalTree
from gpuhmm.mm.notifier import (
    MMU_NOTIFY_CLEAR,
    MMU_NOTIFY_MIGRATE,
    MMU_NOTIFY_UNMAP,
)

PAGE = 4096
SOON = 10.0  # seconds after which a thread that should be done is taken for stuck


def range_of(notifier):
    return notifier.mm.subscriptions.invalidate_range(notifier.start, notifier.end)


class Driver:
    """Notes what its callback was called with."""

    def __init__(self, mm, start, end, answer=True, sets_seq=True):
        self.calls = []
        self.answer = answer
        self.sets_seq = sets_seq
        self.notifier = mm.notifier(start, end, self.invalidate)

    def invalidate(self, notifier, range_, cur_seq):
        assert notifier is self.notifier
        self.calls.append((range_.start, range_.end, range_.event, range_.owner, cur_seq))
        if not self.answer and not range_.blockable:
            return False
        if self.sets_seq:
            notifier.set_seq(cur_seq)
        return True


@pytest.fixture
def mm():
    return anonymous(16)


# -- the sequence -----------------------------------------------------------------------------


def test_overlapping_invalidations_share_one_sequence(mm):
    notifier = mm.notifier(BASE, BASE + PAGE)
    subscriptions = mm.subscriptions
    seq = notifier.read_begin()
    outer, inner = range_of(notifier), range_of(notifier)
    assert subscriptions.invalidate_range_start(outer) == 0
    assert notifier.invalidate_seq == subscriptions.invalidate_seq == 3
    assert subscriptions.invalidate_range_start(inner) == 0
    assert subscriptions.invalidate_seq == 3
    subscriptions.invalidate_range_end(outer)
    assert subscriptions.is_invalidating  # the order of the ends does not matter
    subscriptions.invalidate_range_end(inner)
    assert (subscriptions.invalidate_seq, notifier.invalidate_seq) == (4, 3)
    assert notifier.read_retry(seq)
    # in the next period the sequence is two higher
    notifier.invalidate()
    assert notifier.invalidate_seq == 5


def test_an_invalidation_that_meets_nobody_causes_no_retry(mm):
    notifier = mm.notifier(BASE, BASE + PAGE)
    seq = notifier.read_begin()
    with mm.subscriptions.invalidate_range(BASE + PAGE, BASE + 2 * PAGE):
        assert mm.subscriptions.active_invalidate_ranges == 1
        assert notifier.read_begin() == seq  # and nobody waits
    assert not notifier.read_retry(seq)
    assert mm.subscriptions.invalidate_seq == 2


def test_an_invalidation_that_meets_nobody_prolongs_the_period_of_another(mm):
    notifier = mm.notifier(BASE, BASE + PAGE)
    other = mm.subscriptions.invalidate_range(BASE + PAGE, BASE + 2 * PAGE)
    with range_of(notifier):
        mm.subscriptions.invalidate_range_start(other)
    assert mm.subscriptions.invalidate_seq == 3
    mm.subscriptions.invalidate_range_end(other)
    assert mm.subscriptions.invalidate_seq == 4


def test_the_last_byte_counts_and_the_end_does_not(mm):
    notifier = mm.notifier(BASE + PAGE, BASE + 2 * PAGE)
    with mm.subscriptions.invalidate_range(BASE, BASE + PAGE):
        assert not mm.subscriptions.is_invalidating
    with mm.subscriptions.invalidate_range(BASE + 2 * PAGE, BASE + 3 * PAGE):
        assert not mm.subscriptions.is_invalidating
    with mm.subscriptions.invalidate_range(BASE + 2 * PAGE - 1, BASE + 3 * PAGE):
        assert notifier.invalidate_seq == 3


# -- deferred insert and remove ---------------------------------------------------------------


def test_insert_while_idle_is_never_busy(mm):
    first = mm.notifier(BASE, BASE + PAGE)
    first.invalidate()
    late = mm.notifier(BASE, BASE + PAGE)
    assert late.invalidate_seq == mm.subscriptions.invalidate_seq - 1 == 3
    assert late.read_begin() == 3


def test_insert_while_the_tree_is_invalidated_waits_for_the_end(mm):
    first = mm.notifier(BASE, BASE + PAGE)
    with range_of(first):
        late = mm.notifier(BASE, BASE + 2 * PAGE)
        assert mm.subscriptions.intervals == [first]
        assert late.invalidate_seq == mm.subscriptions.invalidate_seq == 3  # busy till then
        with pytest.raises(RuntimeError, match="inside an invalidation"):
            late.read_begin()
    assert mm.subscriptions.intervals == [first, late]
    seq = late.read_begin()
    assert not late.read_retry(seq)
    late.invalidate()
    assert late.read_retry(seq)


def test_insert_beside_an_invalidation_that_met_nobody_makes_the_sequence_odd(mm):
    with mm.subscriptions.invalidate_range(BASE, BASE + PAGE):
        assert mm.subscriptions.invalidate_seq == 2
        late = mm.notifier(BASE, BASE + PAGE)
        assert mm.subscriptions.intervals == [late]  # into the tree at once
        assert late.invalidate_seq == mm.subscriptions.invalidate_seq == 3
    assert mm.subscriptions.invalidate_seq == 4
    assert late.read_begin() == 3


def test_a_deferred_insert_is_unlinked_without_waiting(mm):
    first = mm.notifier(BASE, BASE + PAGE)
    with range_of(first):
        late = mm.notifier(BASE, BASE + PAGE)
        late.remove()
    assert mm.subscriptions.intervals == [first]


def test_remove_waits_for_the_invalidation_and_is_called_until_then(mm):
    driver = Driver(mm, BASE, BASE + PAGE)
    subscriptions = mm.subscriptions
    period = range_of(driver.notifier)
    subscriptions.invalidate_range_start(period)
    thread = threading.Thread(target=driver.notifier.remove)
    thread.start()
    while not driver.notifier._removed:
        pass
    thread.join(0.05)
    assert thread.is_alive()
    with range_of(driver.notifier):
        assert len(driver.calls) == 2  # still in the tree
    subscriptions.invalidate_range_end(period)
    thread.join(SOON)
    assert not thread.is_alive()
    assert subscriptions.intervals == []
    with range_of(driver.notifier):
        assert len(driver.calls) == 2


# -- waiting ----------------------------------------------------------------------------------


def test_read_begin_waits_for_its_own_notifier_only(mm):
    busy, idle = mm.notifier(BASE, BASE + PAGE), mm.notifier(BASE + PAGE, BASE + 2 * PAGE)
    period = range_of(busy)
    mm.subscriptions.invalidate_range_start(period)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(busy.read_begin()))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    other = threading.Thread(target=lambda: seen.append(idle.read_begin()))
    other.start()
    other.join(SOON)
    assert seen == [1]
    mm.subscriptions.invalidate_range_end(period)
    thread.join(SOON)
    assert seen == [1, 3]
    assert not busy.read_retry(3)


def test_waiting_for_oneself_is_refused(mm):
    notifier = mm.notifier(BASE, BASE + PAGE)
    with range_of(notifier):
        for wait in (notifier.read_begin, notifier.remove):
            with pytest.raises(RuntimeError, match="inside an invalidation"):
                wait()
    notifier.read_begin()  # refused is not removed
    notifier.remove()


# -- callbacks --------------------------------------------------------------------------------


def test_callbacks_get_event_owner_and_sequence_in_order_of_address(mm):
    right, left = Driver(mm, BASE + PAGE, BASE + 2 * PAGE), Driver(mm, BASE, BASE + 4 * PAGE)
    same = Driver(mm, BASE + PAGE, BASE + 2 * PAGE)
    order = []
    for driver in (right, left, same):
        driver.notifier.ops_invalidate = lambda *call, driver=driver: (
            order.append(driver) or driver.invalidate(*call)
        )
    with mm.subscriptions.invalidate_range(BASE + PAGE, BASE + 2 * PAGE, event=MMU_NOTIFY_MIGRATE, owner=77):
        assert order == [left, right, same]
    assert left.calls == [(BASE + PAGE, BASE + 2 * PAGE, MMU_NOTIFY_MIGRATE, 77, 3)]
    left.notifier.invalidate(MMU_NOTIFY_UNMAP)
    assert left.calls[1] == (BASE, BASE + 4 * PAGE, MMU_NOTIFY_UNMAP, None, 5)


def test_a_driver_may_leave_its_sequence_alone(mm):
    driver = Driver(mm, BASE, BASE + PAGE, sets_seq=False)
    seq = driver.notifier.read_begin()
    with mm.subscriptions.invalidate_range(BASE, BASE + PAGE, event=MMU_NOTIFY_MIGRATE, owner=1):
        assert mm.subscriptions.is_invalidating
        assert driver.notifier.read_begin() == seq  # not busy: it did not take the sequence over
    assert not driver.notifier.read_retry(seq)


def test_a_non_blockable_invalidation_may_be_refused(mm):
    first, refuses, last = (Driver(mm, BASE, BASE + PAGE, answer=i != 1) for i in range(3))
    subscriptions = mm.subscriptions
    period = subscriptions.invalidate_range(BASE, BASE + PAGE, blockable=False)
    assert subscriptions.invalidate_range_start(period) == -errno.EAGAIN
    # over at once: those before it were told, those after it not
    assert [len(driver.calls) for driver in (first, refuses, last)] == [1, 1, 0]
    assert (subscriptions.active_invalidate_ranges, subscriptions.invalidate_seq) == (0, 4)
    with pytest.raises(ValueError, match="must be started"):
        subscriptions.invalidate_range_end(period)
    with pytest.raises(BlockingIOError) as caught, period:
        pytest.fail("the change must not happen")
    assert caught.value.errno == errno.EAGAIN
    with subscriptions.invalidate_range(BASE, BASE + PAGE):  # a blockable one is not refused
        assert len(last.calls) == 1


@pytest.mark.parametrize("answer", [False, None])
def test_a_callback_that_refuses_a_blockable_invalidation_is_an_error(mm, answer):
    mm.notifier(BASE, BASE + PAGE, lambda *_: answer)
    with (
        pytest.raises(RuntimeError, match="must return True"),
        mm.subscriptions.invalidate_range(BASE, BASE + PAGE),
    ):
        pytest.fail("the change must not happen")
    assert not mm.subscriptions.is_invalidating


def test_a_callback_that_raises_leaves_the_space_idle(mm):
    def broken(notifier, range_, cur_seq):
        raise KeyError("driver bug")

    mm.notifier(BASE, BASE + PAGE, broken)
    with pytest.raises(KeyError, match="driver bug"), mm.subscriptions.invalidate_range(BASE, BASE + PAGE):
        pytest.fail("the change must not happen")
    assert (mm.subscriptions.active_invalidate_ranges, mm.subscriptions.invalidate_seq) == (0, 4)


def test_a_change_that_raises_ends_its_invalidation(mm):
    notifier = mm.notifier(BASE, BASE + PAGE)
    with pytest.raises(ZeroDivisionError), range_of(notifier):
        1 / 0  # noqa: B018
    assert notifier.read_begin() == 3


# -- misuse -----------------------------------------------------------------------------------


def test_misuse_is_refused(mm):
    subscriptions = mm.subscriptions
    with pytest.raises(ValueError, match="start < end"):
        mm.notifier(BASE, BASE)
    with pytest.raises(ValueError, match="start < end"):
        subscriptions.invalidate_range(BASE, BASE)
    with pytest.raises(ValueError, match="MMU_NOTIFY"):
        subscriptions.invalidate_range(BASE, BASE + 1, event=8)
    notifier = mm.notifier(BASE, BASE + PAGE)
    with pytest.raises(ValueError, match="odd"):
        notifier.set_seq(subscriptions.invalidate_seq)
    period = range_of(notifier)
    with pytest.raises(ValueError, match="must be started"):
        subscriptions.invalidate_range_end(period)
    with period, pytest.raises(ValueError, match="must be ended before"):
        subscriptions.invalidate_range_start(period)
    assert subscriptions.active_invalidate_ranges == 0
    notifier.remove()
    for use in (
        notifier.read_begin,
        notifier.invalidate,
        lambda: notifier.check_retry(1),
        lambda: notifier.read_retry(1),
    ):
        with pytest.raises(RuntimeError, match="after it was removed"):
            use()
    with pytest.raises(ValueError, match="removed already"):
        notifier.remove()


# -- the tree ---------------------------------------------------------------------------------

SPANS = st.tuples(st.integers(0, 60), st.sampled_from([0, 0, 1, 2, 7, 8, 31, 1 << 40]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(SPANS, max_size=30), st.lists(st.integers(0, 29), max_size=15), SPANS)
def test_the_tree_finds_what_a_search_through_all_finds(spans, gone, asked):
    tree = IntervalTree()
    items = [[start, start + length] for start, length in spans]
    for item in items:
        tree.insert(*item, item)
    for index in gone:
        if index < len(items) and items[index] in tree:
            tree.remove(items[index])
            items[index] = [-1, -1]
    kept = [item for item in items if item[0] >= 0]
    start, last = asked[0], asked[0] + asked[1]
    # sorted() is stable: equal starts stay in the order of insertion, as in the kernel's tree
    expected = sorted(
        (item for item in kept if item[0] <= last and item[1] >= start), key=lambda item: item[0]
    )
    found = tree.overlapping(start, last)
    assert [id(item) for item in found] == [id(item) for item in expected]
    assert len(tree) == len(list(tree)) == len(kept)


def test_the_tree_refuses_what_it_cannot_hold():
    tree = IntervalTree()
    item = object()
    with pytest.raises(ValueError, match="start <= last"):
        tree.insert(2, 1, item)
    tree.insert(1, 2, item)
    with pytest.raises(ValueError, match="once only"):
        tree.insert(1, 2, item)
    tree.remove(item)
    with pytest.raises(KeyError):
        tree.remove(item)


def test_the_default_event_is_clear(mm):
    assert mm.subscriptions.invalidate_range(BASE, BASE + PAGE).event == MMU_NOTIFY_CLEAR
