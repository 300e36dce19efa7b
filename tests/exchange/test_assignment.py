import pytest

from exchange.assignment import NoEngineLives, UnknownEngine, choose_home


def test_the_engine_with_the_fewest_clients() -> None:
    """A new client goes to the live engine that the fewest clients call home."""
    assert choose_home(0, [1, 2, 3], [1, 2, 3], {1: 4, 2: 1, 3: 2}) == 2


def test_the_lowest_number_on_a_tie() -> None:
    """Of engines with equally many clients the lowest number is chosen, whatever the order they come in."""
    assert choose_home(0, [3, 2, 1], [3, 2], {1: 0}) == 2


def test_an_engine_that_is_not_live_is_not_chosen() -> None:
    """An engine without a live feed gets no new client of its own accord, however empty it is."""
    assert choose_home(0, [1, 2], [2], {2: 9}) == 2


def test_the_preferred_engine_is_taken() -> None:
    """Who names an engine gets it, also while it is not live."""
    assert choose_home(1, [1, 2], [2], {1: 9}) == 1


@pytest.mark.parametrize("preferred", [3, -1, 2**31 - 1])
def test_an_unknown_preferred_engine_is_refused(preferred: int) -> None:
    """The refusal names the engines there are."""
    with pytest.raises(UnknownEngine, match="E1, E2"):
        choose_home(preferred, [2, 1], [1], {})


def test_no_engine_known() -> None:
    """Without engines there is no home, whatever is preferred."""
    with pytest.raises(NoEngineLives, match="no engine has registered"):
        choose_home(1, [], [], {})


def test_no_engine_live() -> None:
    """A home is for ever, so it is not given on an engine that may never come back."""
    with pytest.raises(NoEngineLives, match="E1, E2"):
        choose_home(0, [1, 2], [], {})
