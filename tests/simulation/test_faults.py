"""The schedule of faults is the seed's, and every kind strikes."""

from simulation.faults import FREEZES, KILLS, PARTITIONS, QUIET_START_S, Kind, Pace, schedule


def test_the_same_seed_gives_the_same_faults() -> None:
    """Kinds, targets, gaps and lengths; another seed gives others."""
    assert schedule(7, 300, 3, Pace()) == schedule(7, 300, 3, Pace())
    assert schedule(7, 300, 3, Pace()) != schedule(8, 300, 3, Pace())


def test_every_kind_strikes_in_a_run_that_is_long_enough() -> None:
    """None is left out by chance; none strikes before the market has run for a while, or after the end."""
    faults = schedule(1, 240, 2, Pace())
    assert {fault.kind for fault in faults} == set(Kind) == {*KILLS, *FREEZES, *PARTITIONS}
    assert QUIET_START_S < faults[0].at_s <= faults[-1].at_s < 240
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)


def test_each_class_has_its_own_pace() -> None:
    """More kills change no freeze and no partition; a pace of nothing leaves a class out."""
    calm = schedule(3, 120, 2, Pace(kills=0))
    wild = schedule(3, 120, 2, Pace(kills=30))
    assert calm
    assert not any(fault.kind in KILLS for fault in calm)
    assert [fault for fault in wild if fault.kind not in KILLS] == calm
    assert calm[-1].kind is Kind.HOLE
    assert calm[-1].at_s + calm[-1].lasts_s > 120, "the last one outlasts the orders"
    assert 40 <= len(wild) - len(calm) <= 80


def test_what_lasts_ends_in_time_and_what_kills_is_over_at_once() -> None:
    """Freezes and partitions last no longer than they may, some long enough to outlast a lease."""
    faults = schedule(5, 600, 3, Pace(longest_s=4))
    lasting = [fault.lasts_s for fault in faults if fault.kind not in (*KILLS, Kind.RESET)]
    assert max(lasting) <= 4
    assert min(lasting) > 0
    assert any(lasts_s > 1.5 for lasts_s in lasting)
    *short, last = schedule(5, 600, 3, Pace(kills=0, longest_s=0.5))
    assert max(fault.lasts_s for fault in short) == 0.5 < last.lasts_s
    at_once = {*KILLS, Kind.RESET} - {Kind.KILL_CUT_OFF}
    assert {fault.lasts_s for fault in faults if fault.kind in at_once} == {0.0}
    assert all(fault.delay_s > 0 for fault in faults if fault.kind is Kind.DELAY)
