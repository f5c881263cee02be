"""Work done ahead: in order, bounded, with the caller's errors, and with no thread left over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from distill.data.ahead import Part, filled


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


class Boxes:
    """Jobs that append to a list of their own; notes which were begun."""

    def __init__(self, count: int, parts: int = 3, work: Callable[[int, int], object] = lambda job, part: None) -> None:
        self.count, self.parts, self.work = count, parts, work
        self.begun = 0
        self.ran: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[list[int], list[Part]]]:
        for job in range(self.count):
            self.begun += 1
            box = [-1] * self.parts
            yield box, [self.part(box, job, part) for part in range(self.parts)]

    def part(self, box: list[int], job: int, part: int) -> Part:
        def run() -> None:
            self.work(job, part)
            self.ran.append((job, part))
            box[part] = 10 * job + part

        return run


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("ahead", [0, 1, 7])
def test_results_are_whole_and_in_order(workers: int, ahead: int) -> None:
    # The first parts take longest, so a pool that hands over what is done first would be found out.
    jobs = Boxes(6, work=lambda job, part: time.sleep(0.002 * (6 - job) * (3 - part)))
    found = list(filled(jobs, workers=workers, ahead=ahead))
    assert found == [[10 * job + part for part in range(3)] for job in range(6)]
    assert not threads()


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_is_begun_than_is_asked_for(ahead: int) -> None:
    jobs = Boxes(20)
    results = filled(jobs, workers=2, ahead=ahead)
    assert jobs.begun == 0
    for number in range(5):
        next(results)
        assert jobs.begun == number + 1 + ahead
    results.close()


def test_no_jobs_and_jobs_without_parts() -> None:
    assert list(filled([], workers=2, ahead=2)) == []
    assert list(filled([("a", []), ("b", [])], workers=2, ahead=2)) == ["a", "b"]


def test_an_error_is_raised_where_its_result_would_be() -> None:
    def work(job: int, part: int) -> None:
        if job == 2 and part > 0:
            raise ValueError(f"part {part}")

    results = filled(Boxes(5, work=work), workers=3, ahead=4)
    assert [next(results), next(results)] == [[0, 1, 2], [10, 11, 12]]
    with pytest.raises(ValueError, match="part 1"):
        next(results)
    assert not threads()
    assert list(results) == []


def test_an_error_of_the_jobs_ends_the_threads() -> None:
    def jobs() -> Iterator[tuple[int, list[Part]]]:
        yield 1, []
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(filled(jobs(), workers=2, ahead=1))
    assert not threads()


@pytest.mark.parametrize("how", ["close", "forget", "throw"])
def test_leaving_early_drops_what_has_not_begun(how: str) -> None:
    gate = threading.Event()
    jobs = Boxes(50, parts=1, work=lambda job, part: job == 0 or gate.wait(10))
    results = filled(jobs, workers=2, ahead=40)
    assert next(results) == [0]
    assert threads()
    timer = threading.Timer(0.05, gate.set)
    timer.start()
    if how == "close":
        results.close()
    elif how == "forget":
        del results
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    timer.join()
    assert not threads()
    assert len(jobs.ran) <= 3  # the first, and one under way in each thread
