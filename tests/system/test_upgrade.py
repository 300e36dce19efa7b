"""A market that an earlier version left behind goes on: nothing that it told anybody is lost or altered."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from matchbus.v1 import matchbus_pb2 as pb

from tests.system.venue import Floor, Trader, Venue, expect_status, floor, run_command

STORED = Path(__file__).parent / "stored" / "market_of_25_november"
"""What `matchbus up --engines 2 --data DIR --snapshot-every 40` of that day's code had on disk when it had
stopped, and what it had told three clients: fills at home and by legs of either engine, open orders,
positions, tokens.

Records are of format 1, as is the one snapshot; tokens have no end."""


def _fill(fill: pb.Fill) -> list[Any]:
    return [
        *(fill.sequence, fill.execution_id, fill.order_id, fill.client_order_id, fill.symbol, fill.side),
        *(fill.price, fill.quantity, fill.liquidity, fill.engine_id, fill.contra_order_id, fill.timestamp_ns),
    ]


def _order(order: pb.OrderState) -> list[Any]:
    return [
        *(order.order_id, order.client_order_id, order.symbol, order.side, order.price, order.quantity),
        *(order.cumulative_quantity, order.status),
    ]


async def _assert_told(trading: Floor, trader: Trader, told: dict[str, Any]) -> None:
    assert [_fill(fill) for fill in await trader.fills()] == told["fills"]
    assert [_order(order) for order in await trader.open_orders()] == told["open"]
    assert await trading.positions(trader) == {symbol: held for symbol, held, _ in told["positions"]}


@pytest.mark.timeout(120)
async def test_what_an_earlier_version_told_is_there(own_venue: Callable[..., Venue], tmp_path: Path) -> None:
    """Fills, orders, positions, homes, secrets; its journals can be read, and orders trade on behind them."""
    told: dict[str, dict[str, Any]] = json.loads(STORED.with_suffix(".json").read_text())
    with tarfile.open(STORED.with_suffix(".tar.gz")) as stored:
        stored.extractall(tmp_path / "data", filter="data")
    venue = own_venue(engines=2, symbols=("AAPL", "MSFT"))
    async with floor(venue) as trading:
        traders: dict[str, Trader] = {}
        for name, client in told.items():
            channel = await trading.channel(venue.address(client["engine"]))
            before = Trader(name, "", pb.RegisterClientReply(token=client["token"]), channel)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await before.open_orders()
            expect_status(ended.value, grpc.StatusCode.UNAUTHENTICATED)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await trading.register(name, "another secret")
            expect_status(refused.value, grpc.StatusCode.PERMISSION_DENIED)
            reply = await trading.register(name, f"secret of {name}")
            assert reply.engine == client["engine"]
            traders[name] = Trader(name, f"secret of {name}", reply, channel)
        for name, trader in traders.items():
            await _assert_told(trading, trader, told[name])
        for number in ("1", "2"):
            run_command("journal", "verify", number, "--nats", venue.nats_url)
            run_command("snapshot", "make", number, "--nats", venue.nats_url)
            run_command("snapshot", "verify", number, "--nats", venue.nats_url)
        ann, bob = traders["ann"], traders["bob"]
        best = max(order.price for order in await ann.open_orders())
        sold = await bob.limit("AAPL", pb.SIDE_SELL, best, 1)
        assert sold.status == pb.ORDER_STATUS_FILLED
        for trader in (ann, bob):
            assert [fill.sequence for fill in await trader.fills()] == [
                *range(1, len(told[trader.name]["fills"]) + 2)
            ]
