"""The core's words are those of the gRPC contract, so the edge converts nothing."""

from enum import IntEnum

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from matchbus.v1 import matchbus_pb2

from bus.messages import engine_of_id
from engine.terms import (
    MAX_CLIENT_ORDER_ID_LENGTH,
    MAX_NOTIONAL,
    MAX_PRICE,
    MAX_QUANTITY,
    MAX_SYMBOL_LENGTH,
    Liquidity,
    OrderStatus,
    OrderType,
    RejectReason,
    SelfTradePrevention,
    Side,
    TimeInForce,
    first_id,
)

PAIRS: list[tuple[type[IntEnum], EnumTypeWrapper, str]] = [
    (Side, matchbus_pb2.Side, "SIDE_"),
    (OrderType, matchbus_pb2.OrderType, "ORDER_TYPE_"),
    (TimeInForce, matchbus_pb2.TimeInForce, "TIME_IN_FORCE_"),
    (SelfTradePrevention, matchbus_pb2.SelfTradePrevention, "SELF_TRADE_PREVENTION_"),
    (OrderStatus, matchbus_pb2.OrderStatus, "ORDER_STATUS_"),
    (RejectReason, matchbus_pb2.RejectReason, "REJECT_REASON_"),
    (Liquidity, matchbus_pb2.Liquidity, "LIQUIDITY_"),
]


@pytest.mark.parametrize(("term", "wire", "prefix"), PAIRS, ids=[pair[0].__name__ for pair in PAIRS])
def test_terms_have_the_numbers_of_the_contract(
    term: type[IntEnum], wire: EnumTypeWrapper, prefix: str
) -> None:
    """Each enum has the same names with the same numbers; only what is unspecified may be absent or NONE."""
    ours = {member.name: member.value for member in term}
    theirs = {name.removeprefix(prefix): number for name, number in wire.items()}
    assert {name: number for name, number in ours.items() if number} == {
        name: number for name, number in theirs.items() if number
    }
    assert all(name.startswith(prefix) for name in wire.keys())  # noqa: SIM118 -- a wrapper is no dict
    assert wire.Name(0) == f"{prefix}UNSPECIFIED"


@pytest.mark.parametrize("engine", [1, 2, 65_535])
def test_an_id_names_the_engine_that_gave_it(engine: int) -> None:
    """The first id, and the last of 2**48, say which engine's they are; all fit 64 bits."""
    assert first_id(engine) == (engine << 48) + 1
    for number in (first_id(engine), first_id(engine) + 2**48 - 2):
        assert engine_of_id(number) == engine
        assert number < 2**64


def test_every_legal_number_fits_the_wire() -> None:
    """Prices, quantities and what one order is worth fit a signed 64-bit number."""
    assert max(MAX_PRICE, MAX_QUANTITY, MAX_NOTIONAL) < 2**63
    assert MAX_CLIENT_ORDER_ID_LENGTH == 36
    assert MAX_SYMBOL_LENGTH == 24
