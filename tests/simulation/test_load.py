"""How long a fault silenced an engine, as its clients heard it."""

from array import array

import pytest

from simulation.load import Acknowledgements

S = 10**9


@pytest.mark.parametrize(
    ("start_s", "end_s", "silence_s"),
    [
        (1.0, 5.0, 3.0),  # the gap from 1 to 4 began as the fault struck
        (1.1, 5.0, 3.0),  # or just before
        (4.0, 5.0, 1.0),  # an answer each second is all the silence there is
        (0.1, 0.2, 1.0),  # a silence that begins before the end counts whole
        (3.0, 5.0, None),  # it was silent already: another fault's doing
        (8.0, 9.0, None),  # nobody was there to hear it
    ],
)
def test_a_silence_is_the_doing_of_the_fault_that_began_it(
    start_s: float, end_s: float, silence_s: float | None
) -> None:
    """Answers came at 0, 1, 4, 5 and 6 seconds."""
    acks = Acknowledgements({1: array("q", [0, S, 4 * S, 5 * S, 6 * S])})
    assert acks.longest_silence_s(1, round(start_s * S), round(end_s * S)) == silence_s
