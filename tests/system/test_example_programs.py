"""The examples do on a real market what their first lines say."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nats
from matchbus.v1 import matchbus_pb2 as pb
from nats.js.api import ConsumerInfo

from tests.system.terminal import Running
from tests.system.venue import REPOSITORY, Venue, eventually, floor, run_command

EXAMPLES = REPOSITORY / "examples"
DEADLINE_S = 60.0


def output_of(*command: str | Path, **environment: str) -> str:
    """What a program prints that must end well."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def following(name: str, *arguments: str) -> Running:
    """Start an example that goes on until it is interrupted."""
    return Running([sys.executable, str(EXAMPLES / name), *arguments], dict(os.environ))


async def test_trade(one_engine: Venue) -> None:
    """`trade.py` quotes, takes, and shows the book and what is held, where nobody else trades."""
    async with floor(one_engine) as trading:
        trader = await trading.trader(1)
        for symbol, side in (("S0", pb.SIDE_BUY), ("S1", pb.SIDE_SELL)):
            await trader.limit(symbol, side, 1_000, 5)
        output = output_of(sys.executable, EXAMPLES / "trade.py", one_engine.exchange)
        assert not output.startswith(("S0: ", "S1: "))
        assert "take  filled" in output
        assert "quote cancelled after 4 filled" in output
        symbol = output.partition(":")[0]
        assert output.splitlines()[-2:] == [f"maker holds -4 {symbol}", f"taker holds 4 {symbol}"]
        await trader.cancel_all()


def test_raw_grpc(one_engine: Venue) -> None:
    """`raw_grpc.py` needs nothing but the contract, and its repeated order is entered once."""
    output = output_of(sys.executable, EXAMPLES / "raw_grpc.py", one_engine.exchange, "S360")
    assert output.splitlines()[1:] == [
        "bid ORDER_STATUS_NEW, leaves 5, reply.duplicate=False",
        "bid ORDER_STATUS_NEW, leaves 5, reply.duplicate=True",
        "REJECT_REASON_INVALID_SIDE: side 0 must be SIDE_BUY (1) or SIDE_SELL (2)",
        "ORDER_STATUS_FILLED REJECT_REASON_UNSPECIFIED",
        "ORDER_STATUS_REJECTED REJECT_REASON_ORDER_CLOSED",
        "fill 1: SIDE_BUY 5 lots at 100",
        "fill 2: SIDE_SELL 5 lots at 100",
    ]


def test_the_command_line(one_engine: Venue) -> None:
    """`trade.sh` trades, goes on after a refusal, and leaves nothing in the market."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    output = output_of(EXAMPLES / "trade.sh", one_engine.exchange, one_engine.nats_url, "S361", PATH=path)
    assert "is new, again: False" in output
    assert "again: True" in output
    assert "filled 4 at 101.00 on average" in output
    assert "REFUSED  INVALID_QUANTITY" in output
    assert "nobody buys nothing" in output
    book = run_command("book", "S361", "--consolidated", "--json", "--exchange", one_engine.exchange)
    assert json.loads(book)["bids"] == json.loads(book)["asks"] == []


async def test_the_market_maker_leans_against_its_position(one_engine: Venue) -> None:
    """Taking its ask moves both quotes up a tick; a later run goes on from there; Ctrl-C cancels both."""
    arguments = (one_engine.exchange, "S362", "10.00")
    maker = following("market_maker.py", *arguments)
    try:
        assert maker.until(3) == ["0 held", "buy 10 at 9.98: new ", "sell 10 at 10.02: new "]
        async with floor(one_engine) as trading:
            taker = await trading.trader(1)
            assert (await taker.limit("S362", pb.SIDE_BUY, 1_002, 10)).status == pb.ORDER_STATUS_FILLED
            moved = ["-10 held", "buy 10 at 9.99: new ", "sell 10 at 10.03: new "]
            assert maker.until(6)[3:] == moved
            assert maker.interrupt() == 0
            maker.end()
            maker = following("market_maker.py", *arguments)
            assert maker.until(3) == moved
            assert maker.interrupt() == 0

            async def empty() -> bool:
                book = await taker.book("S362")
                return not book.bids and not book.asks

            await eventually(empty, 5, "the quotes are cancelled")
    finally:
        maker.end()


async def test_the_market_maker_holds_no_more_than_it_wants(one_engine: Venue) -> None:
    """Many who sell to it at once, a lot each, sell it no more than five quotes' worth."""
    maker = following("market_maker.py", one_engine.exchange, "S364", "10.00")
    try:
        maker.until(3)
        async with floor(one_engine) as trading:
            seller = await trading.trader(1)

            async def sell() -> int:
                order = {"time_in_force": pb.TIME_IN_FORCE_IOC}
                sales = [await seller.limit("S364", pb.SIDE_SELL, 900, 1, **order) for _ in range(50)]
                return sum(sale.cumulative_quantity for sale in sales)

            sold = 0
            async with asyncio.timeout(DEADLINE_S):
                while sold <= 10:  # its first quote alone
                    sold += sum(await asyncio.gather(*(sell() for _ in range(8))))
            assert sold <= 50
        assert maker.interrupt() == 0
    finally:
        maker.end()


async def test_the_drop_copy_follower_goes_on_where_it_stopped(one_engine: Venue) -> None:
    """`drop_copy.py` prints every report once, and a later run begins behind the place it is given."""
    async with floor(one_engine) as trading:
        trader = await trading.trader(1)

        async def rest(client_order_id: str) -> None:
            await trader.limit("S363", pb.SIDE_BUY, 100, 1, client_order_id=client_order_id)

        await rest("first")
        place = seen_by_drop_copy(one_engine, "0", trader.name, "first")
        await rest("second")
        assert seen_by_drop_copy(one_engine, str(place), trader.name, "second", never="first") > place


async def test_the_drop_copy_follower_goes_on_when_nats_has_forgotten_it(one_engine: Venue) -> None:
    """As after a minute in which it stood still: it begins anew, behind the last place it has printed."""
    nc = await nats.connect(one_engine.nats_url)
    js = nc.jetstream()
    others = {consumer.name for consumer in await js.consumers_info("EXECUTIONS")}
    before = (await js.stream_info("EXECUTIONS")).state.last_seq
    follower = following("drop_copy.py", one_engine.nats_url, str(before))
    try:
        async with floor(one_engine) as trading:
            trader = await trading.trader(1)
            await trader.limit("S365", pb.SIDE_BUY, 100, 1)
            follower.until(1)

            async def its() -> ConsumerInfo:
                (new,) = [
                    it
                    for it in await js.consumers_info("EXECUTIONS")
                    if it.name not in others and it.config.inactive_threshold == 60  # not the exchange's
                ]
                return new

            async def waits(count: int) -> bool:
                consumer = await its()
                return consumer.num_waiting == count and not consumer.num_pending

            await eventually(lambda: waits(1), DEADLINE_S, "it has all that is stored")
            follower.process.send_signal(signal.SIGSTOP)
            await eventually(lambda: waits(0), DEADLINE_S, "its last fetch is over")
            await js.delete_consumer("EXECUTIONS", (await its()).name)
            follower.process.send_signal(signal.SIGCONT)
            await trader.limit("S365", pb.SIDE_BUY, 100, 1, client_order_id="later")
            count = 1
            while "later" not in (lines := follower.until(count))[-1]:
                count = len(lines) + 1
            assert len(set(lines)) == len(lines)
            assert follower.interrupt() == 0
    finally:
        follower.end()
        await nc.close()


def seen_by_drop_copy(venue: Venue, after: str, client: str, wanted: str, *, never: str = "") -> int:
    """Follow until the order is accepted; the place of that report."""
    follower = following("drop_copy.py", venue.nats_url, after)
    try:
        count = 0
        while True:
            count += 1
            place, _, report = follower.until(count)[count - 1].split(" ", 2)
            kind, its_client, _, client_order_id, *_ = json.loads(report)
            if its_client == client:
                assert client_order_id != never
                if (kind, client_order_id) == ("accepted", wanted):
                    assert follower.interrupt() == 0
                    return int(place)
    finally:
        follower.end()
