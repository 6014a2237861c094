"""Threads by what others leave free; torch's own setting is restored."""

import torch

from deepwell.lm.engine.cores import FreeCores, busy_seconds


class _Machine:
    def __init__(self) -> None:
        self.time, self.busy, self.own = 0.0, 0.0, 0.0

    def run(self, seconds: float, own: float, others: float) -> None:
        self.time += seconds
        self.own += seconds * own
        self.busy += seconds * (own + others)

    def watch(self, most: int) -> FreeCores:
        return FreeCores(most, cores=4, clock=lambda: self.time, busy=lambda: self.busy, own=lambda: self.own)


def test_threads_are_the_cores_that_others_leave_free() -> None:
    machine = _Machine()
    cores = machine.watch(4)
    for own, others, threads in (
        (4.0, 0.0, 4),
        (3.0, 1.0, 3),
        (2.0, 1.8, 2),
        (1.0, 3.0, 1),
        (0.5, 4.0, 1),
        (3.8, 0.3, 4),
    ):
        machine.run(0.3, own, others)
        cores.update()
        assert cores.threads == threads
    few = machine.watch(2)
    machine.run(1.0, 0.0, 1.0)
    few.update()
    assert few.threads == 2


def test_use_is_averaged_over_a_while() -> None:
    machine = _Machine()
    cores = machine.watch(4)
    machine.run(0.2, 0.0, 4.0)
    cores.update()
    assert cores.threads == 4
    machine.run(0.1, 0.0, 4.0)
    cores.update()
    assert cores.threads == 1


def test_a_step_leaves_the_setting_as_it_was() -> None:
    before = torch.get_num_threads()
    machine = _Machine()
    cores = machine.watch(2)
    machine.run(1.0, 0.0, 4.0)
    with cores.for_a_step():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_system_that_does_not_tell_changes_nothing() -> None:
    told = busy_seconds()
    assert told is None or told > 0
    times = iter(range(100))
    cores = FreeCores(3, cores=4, clock=lambda: float(next(times)), busy=lambda: None)
    cores.update()
    assert cores.threads == 3
