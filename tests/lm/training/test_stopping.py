"""Signals as a wish: one stops after the step, a second Ctrl-C at once, and what was there before comes back."""

import os
import signal
import threading

import pytest

from deepwell.lm.parallel.world import World
from deepwell.lm.training.stopping import Stopping


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_wish(number: int) -> None:
    before = signal.getsignal(number)
    with Stopping() as stop:
        assert not stop.asked_everywhere(World())
        send(number)
        assert stop.asked_everywhere(World())
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Stopping():
        send(signal.SIGINT)
        send(signal.SIGINT)


def test_what_torchrun_passes_on_as_well_does_not_cut_the_step_short() -> None:
    with Stopping() as stop:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            send(number)
        assert stop.asked


def test_in_another_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def run() -> None:
        with Stopping():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
