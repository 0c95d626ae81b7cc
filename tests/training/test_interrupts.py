"""The first signal asks, the second one stops; handlers come back."""

from __future__ import annotations

import signal
import threading

import pytest

from colaworld.training.interrupts import StopRequest


@pytest.fixture(autouse=True)
def usual_ctrl_c():
    """Python's own handler, also where the tests were started with Ctrl-C ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


def test_first_asks_second_stops():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as request:
        assert request.requested is None
        signal.raise_signal(signal.SIGINT)
        assert request.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_asks_too_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        assert request.requested == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("heard_hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_is_answered_at_once(number, capfd):
    with StopRequest() as request:
        signal.raise_signal(number)
        name = signal.Signals(number).name
        assert request.requested == name
        assert capfd.readouterr().err == (f"\n{name}: stopping after this step; again: at once\n")


def test_an_ignored_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGHUP)
            assert request.requested is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with StopRequest() as request:
            seen.append((signal.getsignal(signal.SIGINT) is before, request.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, None)]
