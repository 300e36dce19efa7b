"""When a batch waits for more commands, by clocks in the test's hands."""

from engine.runtime.commit_delay import BUSY, LONGEST_S, PERIOD_S, SPARE, CommitDelay

A_PERIOD_S = PERIOD_S * 1.01


class Process:
    """A process that asks for the delay of its next batch after so much time at so much work."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.used_s = 7.0
        self.delay = CommitDelay(monotonic_s=lambda: self.now_s, processor_s=lambda: self.used_s)

    def asks_after(self, seconds: float, share: float) -> float:
        """The delay after `seconds` in which the process had this share of a processor."""
        self.now_s += seconds
        self.used_s += seconds * share
        return self.delay.next_s()


def test_with_time_to_spare_nothing_waits() -> None:
    """However often it is asked, a process that is not busy commits at once."""
    process = Process()
    assert {process.asks_after(A_PERIOD_S / 10, SPARE - 0.05) for _ in range(1_000)} == {0.0}


def test_a_busy_process_waits_longer_step_by_step() -> None:
    """The delay grows while the process is busy; it reaches its limit in a quarter of a second."""
    process = Process()
    delays = [process.asks_after(A_PERIOD_S, BUSY + 0.05) for _ in range(20)]
    assert delays == sorted(delays)
    assert 0 < delays[0] <= LONGEST_S / 5
    assert delays[round(0.25 / PERIOD_S) - 1] == delays[-1] == LONGEST_S


def test_it_waits_no_longer_than_it_takes_to_be_less_busy() -> None:
    """Between busy and spare the delay stays what it is."""
    process = Process()
    reached = [process.asks_after(A_PERIOD_S, BUSY + 0.05) for _ in range(3)][-1]
    assert 0 < reached < LONGEST_S
    assert {process.asks_after(A_PERIOD_S, (BUSY + SPARE) / 2) for _ in range(100)} == {reached}


def test_the_delay_ends_with_the_load() -> None:
    """It shrinks as fast as it grew, and is gone at the first batch after a pause."""
    process = Process()
    for _ in range(20):
        process.asks_after(A_PERIOD_S, 1.0)
    assert 0 < process.asks_after(A_PERIOD_S, 0.1) < LONGEST_S
    assert process.asks_after(1.0, 0.1) == 0.0
