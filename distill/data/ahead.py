"""Work done by threads ahead of who needs it, and handed over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Part = Callable[[], object]


def filled(jobs: Iterable[tuple[T, Iterable[Part]]], *, workers: int, ahead: int) -> Generator[T, None, None]:
    """Runs each job's parts in threads and yields the jobs' results in order, each when its parts are done.

    Nothing begins before the first result is asked for. Then at most `ahead` jobs are begun beyond the one that is
    waited for; a job is taken from `jobs` in the caller's thread when it begins, so what it allocates is bounded too.

    Args:
        jobs: (result, parts): the parts fill the result, each by itself and in any order.
        workers: threads.
        ahead: 0 or more.

    Raises:
        BaseException: what the first failing part of a job raised, in place of the job's result and in the caller's
            thread; the results before it have been handed over.

    Leaving the generator, by an exception or by closing it, drops what has not begun, waits for the parts under way
    and ends the threads.
    """
    waiting: deque[tuple[T, list[Future[object]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    try:
        for result, parts in jobs:
            waiting.append((result, [pool.submit(part) for part in parts]))
            if len(waiting) > ahead:
                yield _done(waiting)
        while waiting:
            yield _done(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _done(waiting: deque[tuple[T, list[Future[object]]]]) -> T:
    result, parts = waiting.popleft()
    for part in parts:
        part.result()
    return result
