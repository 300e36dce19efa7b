"""`matchbus status`: whether an engine takes orders is what it says itself."""

from matchbus.edge import Edge

from client import EngineRole, EngineState, EngineStatus
from client.cli.health import _serves, _venue_sheet


async def test_only_an_engine_that_says_so_takes_orders() -> None:
    """Its feed may be live all the while; one that does not answer takes none either."""
    edge = Edge("matchbus.v1.MatchingEngine")
    address = edge.bind("127.0.0.1:0")
    await edge.start()
    assert not await _serves(address)
    await edge.set_serving(serving=True)
    assert await _serves(address)
    await edge.stop()
    assert not await _serves(address)


def test_an_engine_that_takes_no_orders_stands_out() -> None:
    """With its number and where it is, beside exchange and NATS."""
    well = {"error": "", "round_trip_ms": 1.0, "version": "2.15.1", "streams": 3}
    engine = EngineStatus(2, EngineRole.PRIMARY, EngineState.LIVE, 1, "127.0.0.1:50053", 0, 7, 0, "")
    sheet = _venue_sheet(well | {"address": "x"}, well | {"url": "y"}, [engine], None)
    assert ("E2", "127.0.0.1:50053", ("takes no orders: its log says why", "red")) in sheet.rows
