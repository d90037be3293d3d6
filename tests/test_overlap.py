"""Reading ahead and writing behind: the order, how much is in memory, and what an error does."""

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import ClassVar

import pytest

from kquant_cli.overlap import Behind, ahead

PATIENCE = 20  # seconds, for what takes none


class Item:
    """Something that can be weakly referred to."""

    alive: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


def test_the_next_item_is_made_while_one_is_worked_with():
    made = [threading.Event() for _ in range(4)]

    def source() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    with ahead(source()) as items:
        assert not made[0].is_set(), "nothing is made before it is asked for"
        for number in items:
            for event in made[: number + 2]:
                assert event.wait(PATIENCE)
            assert not any(event.is_set() for event in made[number + 2 :]), "one is ahead, no more"
    assert number == 3


def test_no_more_than_two_items_are_held():
    with ahead(Item() for _ in range(5)) as items:
        while next(items, None) is not None:
            gc.collect()
            assert len(Item.alive) <= 1, "the one that is being made, as the other was dropped"


def test_an_error_comes_at_its_item_and_after_it_nothing():
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("torn")

    seen = []
    with pytest.raises(OSError, match="torn"), ahead(source()) as items:
        seen.extend(iter(items.__next__, None))
    assert seen == [1, 2]
    with ahead([]) as items:
        assert list(items) == []


def test_who_leaves_waits_for_the_item_under_way():
    begun, go_on, done = threading.Event(), threading.Event(), []

    def source() -> Iterator[int]:
        yield 1
        begun.set()
        go_on.wait(PATIENCE)
        done.append(True)
        yield 2

    with pytest.raises(KeyboardInterrupt), ahead(source()) as items:
        next(items)
        begun.wait(PATIENCE)
        go_on.set()
        raise KeyboardInterrupt
    assert done == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kquant-ahead")]


def test_work_behind_is_in_order_one_at_a_time_and_done_at_the_end():
    first, seen = threading.Event(), []

    def work(number: int) -> int:
        if number == 0:
            assert first.wait(PATIENCE)
        seen.append(number)
        return number * number

    with Behind() as behind:
        futures = [behind.run(work, 0)]
        assert seen == [], "run does not wait for its own work"
        first.set()
        futures += [behind.run(work, number) for number in (1, 2)]
        assert seen[:2] == [0, 1], "but for that before"
    assert seen == [0, 1, 2]
    assert [future.result() for future in futures] == [0, 1, 4]


def fail() -> None:
    raise OSError("full")


def test_an_error_behind_is_raised_where_the_next_begins_or_at_the_end():
    done = []
    with pytest.raises(OSError, match="full"), Behind() as behind:
        behind.run(fail)
        behind.run(done.append, 1)
    assert done == []
    with pytest.raises(OSError, match="full"), Behind() as behind:
        behind.run(fail)


def test_the_error_of_the_block_counts_and_work_that_was_begun_is_finished():
    done = []

    def slowly() -> None:
        threading.Event().wait(0.2)
        done.append(1)

    with pytest.raises(KeyboardInterrupt), Behind() as behind:
        behind.run(slowly)
        raise KeyboardInterrupt
    assert done == [1]
    with pytest.raises(KeyboardInterrupt), Behind() as behind:
        behind.run(fail)
        raise KeyboardInterrupt
