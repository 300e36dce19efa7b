"""Decimal prices and quantities on the user's side, integer ticks and lots on the wire's side.

Nothing is rounded: what is not a whole number of ticks or lots is refused.
"""

import math
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache
from typing import Final

import msgspec
from matchbus.v1 import matchbus_pb2 as pb

Number = Decimal | str | int
"""What a price or quantity may be written as; never a float."""

ZERO: Final = Decimal(0)

# Our own context: a user's changed precision must not change what we send.
_CONTEXT: Final = Context(prec=40, traps=[InvalidOperation])
_MAX_WIRE: Final = 2**63 - 1
_MAX_UNITS: Final = 10**12
"""The most ticks or lots of an order. The engine refuses by name what is above and fits on the wire."""

_MAX_PLACES: Final = 40
"""The most places, on either side of the point, of a number that is written out."""

_NO_NUMBER: Final = Decimal("NaN")


class Instrument(msgspec.Struct, frozen=True):
    """A symbol with the sizes of one tick of its price and one lot of its quantity."""

    symbol: str
    tick_size: Decimal
    lot_size: Decimal
    market_collar_percent: Decimal | None = None

    def ticks(self, price: Number) -> int:
        """A price in ticks. Raises `TypeError` for a float, `ValueError` off the tick."""
        return _units(price, self.tick_size, "price", "tick", self.symbol)

    def lots(self, quantity: Number) -> int:
        """A quantity in lots. Raises `TypeError` for a float, `ValueError` off the lot."""
        return _units(quantity, self.lot_size, "quantity", "lot", self.symbol)

    def price(self, ticks: int) -> Decimal:
        """The price of so many ticks."""
        return _CONTEXT.multiply(ticks, self.tick_size)

    def quantity(self, lots: int) -> Decimal:
        """The quantity of so many lots."""
        return _CONTEXT.multiply(lots, self.lot_size)

    def money(self, ticks_times_lots: int) -> Decimal:
        """An amount that the venue gives in ticks x lots."""
        return _CONTEXT.multiply(_CONTEXT.multiply(ticks_times_lots, self.tick_size), self.lot_size)

    def average(self, ticks: float) -> Decimal:
        """An average price, which the venue gives as a float of ticks: for display.

        It has the places of the tick, and more only where they say something.
        """
        exact = _CONTEXT.multiply(Decimal(repr(ticks)), self.tick_size).normalize(_CONTEXT)
        places, least = exact.as_tuple().exponent, self.tick_size.as_tuple().exponent
        return exact if places < least else exact.quantize(self.tick_size, context=_CONTEXT)  # type: ignore[operator]  # a finite number's are ints


def instrument(message: pb.Instrument) -> Instrument:
    """The instrument that the venue lists."""
    return Instrument(
        symbol=message.symbol,
        tick_size=Decimal(message.tick_size),
        lot_size=Decimal(message.lot_size),
        market_collar_percent=Decimal(message.market_collar_percent)
        if message.market_collar_percent
        else None,
    )


def _units(value: Number, size: Decimal, what: str, unit: str, symbol: str) -> int:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{what} is a float, and {value} is no number that {symbol} could trade at")
        raise TypeError(
            f'{what} is a float, which cannot hold most decimals: write "{value}" or Decimal("{value}")'
        )
    if not isinstance(value, (Decimal, str, int)) or isinstance(value, bool):
        raise TypeError(f"{what} is a {type(value).__name__}: write a Decimal, a str or an int")
    return _whole_units(str(value), size, what, unit, symbol)


# Prices and quantities come again and again, and reading them took a third of what a `submit` takes here.
@lru_cache(maxsize=4_096)
def _whole_units(number: str, size: Decimal, what: str, unit: str, symbol: str) -> int:
    try:
        units, rest = _CONTEXT.divmod(Decimal(number), size)
    except InvalidOperation:
        units = rest = _NO_NUMBER
    if not units.is_finite():
        raise ValueError(f"{what} {number!r:.60} is no number that {symbol} could trade at")
    if rest:
        raise ValueError(f"{what} {_written(number)} of {symbol} is not on a {unit}: {unit} size is {size:f}")
    if abs(units) > _MAX_WIRE:
        most = _CONTEXT.multiply(_MAX_UNITS, size)
        raise ValueError(
            f"{what} {_written(number)} of {symbol} is too large: at most {most:f}, 10^12 {unit}s"
        )
    return int(units)


def _written(number: str) -> str:
    """A number for people: without an exponent, unless that would fill the screen."""
    value = Decimal(number)
    return f"{value:f}" if abs(value.adjusted()) <= _MAX_PLACES else f"{number:.60}"
