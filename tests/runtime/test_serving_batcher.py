"""Requests gathered into batches: each answer to its own question, a bounded queue, an end without loss."""

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsee.runtime.serving.batcher import Batcher, QueueFullError, StoppingError


def run(scenario, work=None, **limits):
    """Run a scenario with a started batcher and return what it returned; the batcher is stopped afterwards."""

    async def main():
        batcher = Batcher(work or squares, **({"max_batch": 4, "max_wait": 0.0, "max_queue": 100} | limits))
        batcher.start()
        try:
            return await asyncio.wait_for(scenario(batcher), 20)
        finally:
            await asyncio.wait_for(batcher.stop(), 20)

    return asyncio.run(main())


def squares(items):
    return [item * item for item in items]


class Held:
    """Work that waits until it is let go, and notes what it was given."""

    def __init__(self):
        self.go, self.begun, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, items):
        self.begun.set()
        assert self.go.wait(20)
        self.batches.append(list(items))
        return squares(items)

    async def busy(self, batcher, item):
        """Keep the worker busy with one item; returns its task."""
        task = asyncio.create_task(batcher.submit([item]))
        while not self.begun.is_set():
            await asyncio.sleep(0.001)
        return task


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=5), max_size=30),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.002]),
)
def test_every_caller_gets_its_own_answers_in_order(requests, max_batch, max_wait):
    sizes = []

    async def all_at_once(batcher):
        return await asyncio.gather(*(batcher.submit(items) for items in requests))

    found = run(
        all_at_once,
        max_batch=max_batch,
        max_wait=max_wait,
        max_queue=1000,
        on_batch=lambda items, seconds: sizes.append(items),
    )
    assert found == [squares(items) for items in requests]
    assert sum(sizes) == sum(map(len, requests))
    assert all(1 <= size <= max_batch for size in sizes)


def test_what_comes_while_the_worker_is_busy_goes_together():
    held = Held()

    async def scenario(batcher):
        first = await held.busy(batcher, 1)
        rest = [asyncio.create_task(batcher.submit([i])) for i in range(2, 8)]
        await asyncio.sleep(0.01)
        held.go.set()
        return [await task for task in (first, *rest)]

    assert run(scenario, held) == [[i * i] for i in range(1, 8)]
    assert held.batches == [[1], [2, 3, 4, 5], [6, 7]]


def test_a_lonely_item_waits_for_company():
    batches = []

    async def scenario(batcher):
        first = asyncio.create_task(batcher.submit([1]))
        await asyncio.sleep(0.01)
        return [*await batcher.submit([2, 3]), *await first]

    def work(items):
        batches.append(list(items))
        return squares(items)

    # the third item fills the batch, so nobody waits for the ten seconds
    assert run(scenario, work, max_batch=3, max_wait=10.0) == [4, 9, 1]
    assert batches == [[1, 2, 3]]


def test_a_full_queue_refuses_all_or_nothing_and_keeps_what_it_has():
    held = Held()

    async def scenario(batcher):
        first = await held.busy(batcher, 1)
        waiting = [asyncio.create_task(batcher.submit([i, i + 1])) for i in (2, 4)]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 4
        with pytest.raises(QueueFullError):
            await batcher.submit([6, 7])
        assert batcher.waiting == 4
        last = asyncio.create_task(batcher.submit([8]))
        await asyncio.sleep(0.01)
        held.go.set()
        return [await task for task in (first, *waiting, last)]

    assert run(scenario, held, max_queue=5) == [[1], [4, 9], [16, 25], [64]]


def test_one_bad_item_does_not_take_the_others_with_it():
    held = Held()

    def work(items):
        held(items)
        if 3 in items:
            raise ZeroDivisionError("three")
        return squares(items)

    async def scenario(batcher):
        first = await held.busy(batcher, 1)
        rest = [asyncio.create_task(batcher.submit(items)) for items in ([2], [3], [4, 5])]
        await asyncio.sleep(0.01)
        held.go.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    first, second, bad, fourth = run(scenario, work)
    assert (first, second, fourth) == ([1], [4], [16, 25])
    assert isinstance(bad, ZeroDivisionError)


def test_too_few_answers_are_an_error_and_not_a_shift():
    async def scenario(batcher):
        with pytest.raises(RuntimeError, match="1 items, but 0 answers"):
            await batcher.submit([1, 2])

    run(scenario, lambda items: squares(items)[1:])


def test_whoever_has_gone_is_not_worked_for():
    held = Held()

    async def scenario(batcher):
        first = await held.busy(batcher, 1)
        gone, stays = asyncio.create_task(batcher.submit([2, 3])), asyncio.create_task(batcher.submit([4]))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        held.go.set()
        return [await first, await stays]

    assert run(scenario, held) == [[1], [16]]
    assert held.batches == [[1], [4]]


def test_all_may_go_and_the_next_one_is_served():
    held = Held()

    async def scenario(batcher):
        first = await held.busy(batcher, 1)
        gone = asyncio.create_task(batcher.submit([2]))
        await asyncio.sleep(0.01)
        gone.cancel()
        first.cancel()
        await asyncio.sleep(0.01)
        held.go.set()
        return await batcher.submit([5])

    assert run(scenario, held) == [25]


def test_stopping_answers_what_waits_and_refuses_what_comes():
    held = Held()

    async def scenario(batcher):
        first = await held.busy(batcher, 1)
        waiting = asyncio.create_task(batcher.submit([2, 3]))
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0.01)
        with pytest.raises(StoppingError):
            await batcher.submit([4])
        held.go.set()
        await stopping
        return [await first, await waiting]

    assert run(scenario, held, max_wait=10.0) == [[1], [4, 9]]


def test_the_worker_is_prepared_in_its_own_thread():
    seen = []

    async def scenario(batcher):
        await batcher.submit([1])
        return await batcher.submit([2])

    def work(items):
        seen.append(threading.current_thread())
        return squares(items)

    run(scenario, work, prepare=lambda: seen.append(threading.current_thread()))
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0] is not threading.current_thread()
