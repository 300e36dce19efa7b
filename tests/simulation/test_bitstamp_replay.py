import asyncio
import csv
import gzip
import io
import os
import re
import signal
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest
from matchbus.program import INTERRUPTED
from matchbus.v1 import matchbus_pb2 as pb
from rich.console import Console

from bus.records import JournalDamaged
from client import Client
from engine.terms import Side
from exchange.runtime.settings import DEFAULT_PASSWORD
from simulation import bitstamp, cli, nats_option
from simulation import replay as replaying
from simulation.audit_command import NotJudged
from simulation.bitstamp import SYMBOL, Cancel, Comparison, Place, Reduce, Trade
from simulation.cluster import Cluster
from simulation.replay import (
    IN_FLIGHT,
    WHEEL,
    Carrier,
    ReplayFailed,
    ReplayOutcome,
    ReplaySettings,
    cache_dir,
    command_of,
    deal,
    fetch,
    replay,
    trades_of,
)
from simulation.replay_report import show

ORDERS = """\
id,timestamp,exchange_timestamp,price,volume,action,direction
ghost,1,1,101.0,1.0,created,bid
deep,1,1,90.0,2.0,created,bid
ask1,2,2,100.0,0.5,created,ask
ask2,3,3,100.1,0.5,created,ask
quote,4,4,99.0,1.0,created,bid
taker,5,5,100.1,0.7,created,bid
ask1,6,5,100.0,0.0,deleted,ask
ask2,7,5,100.1,0.3,changed,ask
taker,8,5,100.1,0.0,deleted,bid
crosser,9,9,99.0,1.0,created,ask
crosser,10,10,99.0,1.0,deleted,ask
cash,11,11,999999999.0,0.0,created,bid
ask2,12,11,100.1,0.2,changed,ask
cash,13,11,100.1,0.0,deleted,bid
quote,14,14,99.0,1.0,deleted,bid
ghost,20,20,101.0,1.0,deleted,bid
deep,20,20,90.0,2.0,deleted,bid
ask2,20,20,100.1,0.2,deleted,ask
"""
TRADES = """\
trade_id,timestamp,exchange_timestamp,price,amount,buy_order_id,sell_order_id,side
1,5,5,100.0,0.5,taker,ask1,buy
2,5,5,100.1,0.2,taker,ask2,buy
3,11,11,100.1,0.1,cash,ask2,buy
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A small capture in the shape of the real one: a ghost, a refused post-only order, a cash order."""
    path = tmp_path / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(bitstamp.ORDERS_MEMBER, gzip.compress(ORDERS.encode()))
        archive.writestr(bitstamp.TRADES_MEMBER, TRADES)
    assert len(list(csv.reader(io.StringIO(TRADES)))) == 4
    return path


@pytest.mark.parametrize("engines", [1, 3])
async def test_small_capture_is_repeated(engines: int, wheel: Path, tmp_path: Path) -> None:
    """Through one engine and through three exactly the capture's trades come out, none traded through."""
    console = Console(file=io.StringIO(), width=200)
    async with Cluster(engines=engines, data_dir=tmp_path / "data") as cluster:
        settings = ReplaySettings(
            exchange=cluster.exchange.address,
            password=DEFAULT_PASSWORD,
            engines=engines,
            nats=cluster.nats_url,
        )
        result = await replay(settings, wheel, console)
    assert (result.comparison.matched, result.comparison.missed, result.comparison.extra) == (3, (), ())
    assert result.refusals["post_only_would_cross"] == 1
    assert len(result.audits) == (engines if engines > 1 else 0)
    assert show(result, engines, console) == 0


async def test_a_replay_says_what_rests_and_leaves_nothing_behind(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the capture leaves orders in the book, which would spoil the next replay."""
    said = io.StringIO()
    console = Console(file=said, width=400)
    async with Cluster(engines=1, data_dir=tmp_path / "data") as cluster:
        exchange = cluster.exchange.address
        settings = ReplaySettings(exchange, DEFAULT_PASSWORD, engines=1, limit=4)
        await replay(settings, wheel, console)
        async with Client.connect(
            exchange, client_id="other", password=DEFAULT_PASSWORD, secret="s"
        ) as other:
            assert not (await other.book(SYMBOL)).asks
            await other.submit(SYMBOL, "sell", "1", "100.0")
            async with asyncio.timeout(30):
                while not (await other.venue.book(SYMBOL)).asks:  # noqa: ASYNC110 -- the exchange hears it from the feed
                    await asyncio.sleep(0.01)
            assert "is not empty" not in said.getvalue()
            monkeypatch.setattr(replaying, "_SETTLE_DEADLINE_S", 0.5)  # the other side of a trade never comes
            spoilt = await replay(replace(settings, limit=0), wheel, console)
    assert "The book of BTC-USD is not empty: 1 order of others in it." in said.getvalue()
    assert spoilt.one_sided
    show(spoilt, 1, console)
    assert "missed: 0.50000000 BTC-USD @ 100.0, buy order taker, sell order ask1\n" in said.getvalue()


@pytest.mark.parametrize("engines", [1, 3])
@pytest.mark.parametrize(
    ("comparison", "one_sided", "code"),
    [
        (Comparison(1, (), (), 5, 5, 5), 0, 0),
        (Comparison(1, (), (), 5, 5, 5), 1, 1),
        (Comparison(0, (Trade("b", "s", 1, 5),), (), 0, 0, 5), 0, 1),
        (Comparison(0, (), (), 0, 0, 0), 0, 0),
    ],
)
def test_lost_sides_and_no_trades_at_all_fail(
    comparison: Comparison, one_sided: int, code: int, engines: int
) -> None:
    """Through however many engines; where the capture's part has no trade, none is wanted."""
    outcome = ReplayOutcome(comparison, one_sided, 2, 1.0, Counter(), Counter(), 0, crossed=False, audits=[])
    assert show(outcome, engines, Console(file=io.StringIO())) == code


def test_instructions_become_commands() -> None:
    """The capture's order id is the client order id; price 0 is a market order, at once or never."""
    market = command_of(Place("7", Side.SELL, 0, 5, post_only=False)).new
    limit = command_of(Place("8", Side.BUY, 100, 5, post_only=True)).new
    assert (market.type, market.time_in_force) == (pb.ORDER_TYPE_MARKET, pb.TIME_IN_FORCE_IOC)
    assert (limit.client_order_id, limit.price, limit.quantity, limit.post_only) == ("8", 100, 5, True)
    assert command_of(Cancel("7")).cancel.client_order_id == "7"
    assert command_of(Reduce("7", 100, 3)).replace.quantity == 3


def test_trades_are_joined_from_both_sides() -> None:
    """A buyer's and a seller's fill of one execution are a trade; other executions are counted apart."""
    buy = pb.Fill(execution_id=1, client_order_id="b", side=pb.SIDE_BUY, price=100, quantity=2)
    sell = pb.Fill(execution_id=1, client_order_id="s", side=pb.SIDE_SELL, price=100, quantity=2)
    dearer = pb.Fill(execution_id=1, client_order_id="s", side=pb.SIDE_SELL, price=101, quantity=2)
    larger = pb.Fill(execution_id=1, client_order_id="s", side=pb.SIDE_SELL, price=100, quantity=3)
    alone = pb.Fill(execution_id=2, client_order_id="b", side=pb.SIDE_BUY, price=100, quantity=1)
    assert trades_of([sell, buy, alone]) == ([Trade("b", "s", 100, 2)], 1)
    for wrong in ([buy, buy], [buy, dearer], [buy, larger], [buy, sell, sell]):
        assert trades_of(wrong) == ([], 1)


def test_orders_are_dealt_round_robin() -> None:
    """The first order goes to the first engine, the next to the next, whatever is between them."""
    steps = [Place(name, Side.BUY, 1, 1, post_only=True) for name in "abcd"]
    assert deal([steps[0], Cancel("a"), *steps[1:]], 3) == {"a": 0, "b": 1, "c": 2, "d": 0}


def test_wheel_in_the_cache_is_not_fetched_again(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the wheel in the cache nothing is run."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert fetch(wheel.parent) == wheel


def test_a_user_without_a_home_directory_may_name_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual cache is looked for before the options are read, and must not end that."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 9)  # of nobody
    assert cache_dir() == Path("/.cache/matchbus")


def test_a_cache_that_cannot_be_made_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in the way ends the command before a market starts, in one line that names the option."""
    (tmp_path / "file").touch()
    assert cli.main(["replay", "--cache", str(tmp_path / "file")]) == 1
    assert re.fullmatch(r"the cache .*/file cannot be made \(.*\): .* --cache\n", capsys.readouterr().err)


def test_failed_download_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel and without a package index the replay ends with pip's own words."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ReplayFailed, match="could not download"):
        fetch(tmp_path / "cache")


async def test_an_exchange_that_is_away_is_named() -> None:
    """Who replays on a running market reads which address was tried, and what to do, at once."""
    settings = ReplaySettings(exchange="127.0.0.1:1", password=DEFAULT_PASSWORD, engines=1)
    said = r"no exchange answers at 127\.0\.0\.1:1 .*Connection refused.*--exchange HOST:PORT"
    with pytest.raises(ReplayFailed, match=said):
        await replay(settings, Path("never read"), Console(file=io.StringIO()))


def test_what_is_no_address_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody waits for an answer from it."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", "--exchange", "foo"])
    assert ended.value.code == 2
    assert "argument --exchange: 'foo' is no address: write it like" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--exchange", "127.0.0.1:1"], ["--engines", "2"]])
def test_a_nats_without_use_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Journals are read for the routing between the engines of another's market, and for nothing else."""
    assert cli.main(["replay", "--nats", "nats://127.0.0.1:1", *words]) == 1
    said = "--nats counts only with --exchange and several --engines: leave it out\n"
    assert capsys.readouterr().err == said


def test_a_nats_that_is_away_is_named_before_the_replay(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody waits for the whole replay to read that its journals cannot be."""
    monkeypatch.setattr(nats_option, "PATIENCE_S", 0.2)
    words = ["--exchange", "127.0.0.1:1", "--nats", "nats://127.0.0.1:1", "--cache", str(wheel.parent)]
    assert cli.main(["replay", "--engines", "2", *words]) == 1
    assert capsys.readouterr().err.startswith("no NATS server answers at nats://127.0.0.1:1")


def test_an_unusable_certificate_is_said_in_a_line(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the environment names is not there."""
    monkeypatch.setenv("MATCHBUS_TLS_CA", "/nowhere/ca.pem")
    assert cli.main(["replay", "--exchange", "127.0.0.1:1", "--cache", str(wheel.parent)]) == 1
    assert capsys.readouterr().err.endswith(" environment: /nowhere/ca.pem: No such file or directory\n")


@pytest.mark.parametrize(
    "trouble", [JournalDamaged(1, 7, "the chain is broken"), NotJudged("JOURNAL_1 was trimmed")], ids=repr
)
def test_journals_that_cannot_be_audited_are_said_in_a_line(
    trouble: Exception, wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The replay reads the journals at its end."""
    monkeypatch.setattr(cli, "replay", Mock(side_effect=trouble))
    assert cli.main(["replay", "--exchange", "127.0.0.1:1", "--cache", str(wheel.parent)]) == 1
    assert capsys.readouterr().err == f"{trouble}\n"


@pytest.mark.parametrize("last", ["send", "drained", "close"])
async def test_an_engine_that_falls_silent_ends_the_replay(
    last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far the replay is; a frozen engine would hold it until Ctrl-C."""
    monkeypatch.setattr(replaying, "_CALL_DEADLINE_S", 0.1)
    carrier = carrier_over(Mock(write=AsyncMock(), done_writing=AsyncMock(), code=asyncio.Event().wait))
    for _ in range(IN_FLIGHT):
        await carrier.send([Cancel("7")])
    waiting = {
        "send": lambda: carrier.send([Cancel("7")]),
        "drained": carrier.drained,
        "close": carrier.close,
    }
    with pytest.raises(ReplayFailed, match=r"engine 2 was silent for 0\.1 s"):
        async with asyncio.timeout(10):
            await waiting[last]()


def carrier_over(call: Any) -> Carrier:
    """Client of engine 2, whose OrderEntry stream is this."""
    return Carrier(
        engine=2,
        stub=Mock(OrderEntry=Mock(return_value=call)),
        metadata=(),
        statuses=Counter(),
        refusals=Counter(),
        on_replies=Mock(),
    )


async def test_an_engine_that_answers_slowly_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is that of one answer, not of all that are waited for."""
    monkeypatch.setattr(replaying, "_CALL_DEADLINE_S", 1.0)

    async def answers() -> AsyncIterator[pb.OrderEntryResponse]:
        for _ in range(IN_FLIGHT):
            await asyncio.sleep(0.2)
            yield pb.OrderEntryResponse(replies=[pb.OrderReply()])

    call = MagicMock(write=AsyncMock())
    call.__aiter__.side_effect = answers
    carrier = carrier_over(call)
    for _ in range(IN_FLIGHT):
        await carrier.send([Cancel("7")])
    reading = asyncio.create_task(carrier.read())
    await carrier.drained()
    await reading
    assert carrier.statuses.total() == IN_FLIGHT


async def test_a_stream_that_ends_is_what_the_replay_says(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is killed meanwhile is named, though other tasks hear of it too."""
    async with Cluster(engines=1, data_dir=tmp_path / "data") as cluster:

        async def kill(*_: object) -> NoReturn:
            os.kill(cluster.engines[1].pid, signal.SIGKILL)
            await asyncio.sleep(60)
            raise AssertionError

        monkeypatch.setattr(replaying, "_carry", kill)
        settings = ReplaySettings(cluster.exchange.address, DEFAULT_PASSWORD, engines=1)
        with pytest.raises(ReplayFailed, match="engine 1 ended the stream"):
            await replay(settings, wheel, Console(file=io.StringIO()))


@pytest.mark.parametrize("step", ["fetch", "read_capture", "translate"])
def test_ctrl_c_does_not_wait_for_the_capture(
    step: str, wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is answered at once, and what is read or fetched just then is left behind."""
    began, release = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        began.set()
        release.wait(30)

    def interrupt() -> None:
        if began.wait(20):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli if step == "fetch" else replaying, step, slow)
    monkeypatch.setattr(replaying, "_look", AsyncMock(return_value=0))
    presser = threading.Thread(target=interrupt)
    presser.start()
    try:
        words = ["replay", "--exchange", "127.0.0.1:1", "--cache", str(wheel.parent)]
        started = time.monotonic()
        assert cli.main(words) == INTERRUPTED
        assert time.monotonic() - started < 5
    finally:
        release.set()
        presser.join()
    assert capsys.readouterr().out == "Stopping…\nStopped.\n"
