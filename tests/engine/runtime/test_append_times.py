"""Append times of the last second."""

from engine.runtime.append_times import RECENT_NS, AppendTimes


def test_the_median_and_the_longest_of_the_last_second() -> None:
    """In microseconds; what is older than a second counts no more, and with nothing left both are 0."""
    times = AppendTimes()
    assert times.recent_us(0) == (0, 0)
    times.note(0.5, 0)
    for took_s in (0.001, 0.003, 0.002):
        times.note(took_s, RECENT_NS)
    assert times.recent_us(RECENT_NS) == (3_000, 500_000)
    assert times.recent_us(RECENT_NS + 1) == (2_000, 3_000)
    assert times.recent_us(2 * RECENT_NS + 1) == (0, 0)


def test_what_is_kept_is_bounded() -> None:
    """However many batches a second has, the newest few thousand tell."""
    times = AppendTimes()
    times.note(9.0, 0)
    for _ in range(5_000):
        times.note(0.001, 0)
    assert times.recent_us(0) == (1_000, 1_000)
