from pathlib import Path
from typing import Any

import pytest

from bus.messages import InstrumentEntry
from bus.peer import MAX_SYMBOLS
from exchange.runtime.instruments import (
    InstrumentsRefused,
    parse_instruments,
    publish_instruments,
    read_instruments,
)

GOOD = '[[instrument]]\nsymbol = "AAPL"\ntick_size = "0.01"\nlot_size = "1"\n'


def test_the_files_tables() -> None:
    """Each table becomes one instrument, in order, with its collar or none."""
    text = (
        GOOD
        + '[[instrument]]\nsymbol = "B-C"\ntick_size = "0.1"\nlot_size = "1"\nmarket_collar_percent = "2.5"'
    )
    assert parse_instruments(text) == [
        InstrumentEntry("AAPL", "0.01", "1"),
        InstrumentEntry("B-C", "0.1", "1", "2.5"),
    ]


def test_the_file_of_the_repository() -> None:
    """The instruments that come with Matchbus can be read."""
    entries = read_instruments(Path(__file__).parents[3] / "instruments.toml")
    assert "BTC-USD" in {entry.symbol for entry in entries}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no .*instrument"),
        ("instrument = 5", "no .*instrument"),
        ("instrument = [5]", "list of tables"),
        ("[[instrument", "not TOML"),
        ("x = 1\n" + GOOD, "beside"),
        (GOOD + GOOD, "AAPL is in it 2 times"),
        (GOOD.replace("AAPL", "aapl"), "no symbol"),
        (GOOD.replace("AAPL", "A.>"), "no symbol"),
        (GOOD.replace('"AAPL"', "5"), "symbol must be there"),
        (GOOD.replace('"0.01"', "0.01"), "in quotes"),
        (GOOD.replace('"0.01"', '"0.00"'), "above 0"),
        (GOOD.replace('"0.01"', '"-1"'), "above 0"),
        (GOOD.replace('"0.01"', '"NaN"'), "above 0"),
        (GOOD.replace('"0.01"', '"1e-2"'), "above 0"),
        (GOOD.replace("lot_size", "lot"), "there are only"),
        (GOOD + 'market_collar_percent = "0.001"', "2 decimals"),
        (GOOD + 'market_collar_percent = "0"', "no collar"),
        (GOOD + "market_collar_percent = 5", "in quotes"),
    ],
)
def test_other_files(text: str, why: str) -> None:
    """Anything else is refused, and the text says what is wrong."""
    with pytest.raises(InstrumentsRefused, match=why):
        parse_instruments(text)


def test_more_than_anybody_follows() -> None:
    """As many instruments as followers keep books are taken, and no more."""
    text = "".join(GOOD.replace("AAPL", f"S{number}") for number in range(MAX_SYMBOLS))
    assert len(parse_instruments(text)) == MAX_SYMBOLS
    with pytest.raises(InstrumentsRefused, match="10,001 instruments"):
        parse_instruments(text + GOOD)


async def test_sizes_of_a_faster_exchange_bind() -> None:
    """Of two that start at once with other sizes, one is refused."""
    entries = parse_instruments(GOOD)
    faster = InstrumentEntry("AAPL", "0.02", "1")

    class Bucket:
        found = iter((None, faster))

        async def get(self, _: str) -> InstrumentEntry | None:
            return next(self.found)

        async def create(self, _key: str, _value: InstrumentEntry) -> bool:
            return False

    bucket: Any = Bucket()
    with pytest.raises(InstrumentsRefused, match=r"AAPL has tick_size 0\.02 and the file says 0\.01"):
        await publish_instruments(bucket, entries)


def test_a_missing_file(tmp_path: Path) -> None:
    """A file that cannot be read is named."""
    with pytest.raises(InstrumentsRefused, match=r"nothing\.toml"):
        read_instruments(tmp_path / "nothing.toml")
