"""Who hears Ctrl-C, SIGTERM and SIGHUP while something is trained."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from distill.training.interrupt import STOPS, listen_for_stop


@pytest.fixture
def handlers() -> Iterator[None]:
    """The handlers that were there are there afterwards."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_asks_to_stop_and_its_handler_comes_back(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)
    with listen_for_stop() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", STOPS)
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    """A script's `distill teacher &` outlives the Ctrl-C that ends the script, and so do a comparison's workers."""
    signal.signal(number, signal.SIG_IGN)
    with listen_for_stop() as stop:
        os.kill(os.getpid(), number)
        assert not stop
    assert signal.getsignal(number) is signal.SIG_IGN
