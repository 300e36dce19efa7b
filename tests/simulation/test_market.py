"""What simulated clients see of the market."""

import grpc.aio
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1 import matchbus_pb2_grpc as rpc

from simulation.agents.terms import EngineQuote
from simulation.market import MarketWatch


def level(price: int, *engines: int) -> pb.Level:
    """A level on which these engines have a share."""
    return pb.Level(price=price, quantity=1, engines=[pb.EngineQuantity(engine=engine) for engine in engines])


async def test_each_engines_best_prices_and_their_age() -> None:
    """An engine's best price is that of the first level that it shares; its age is since its last change."""
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        watch = MarketWatch(rpc.ExchangeStub(channel))
    assert watch.engine_quotes("AAPL", 0.0) == ()
    bids, asks = [level(99, 1), level(98, 1, 2)], [level(101, 2)]
    watch.take(pb.ConsolidatedBook(symbol="AAPL", bids=bids, asks=asks), 1.0)
    watch.take(pb.ConsolidatedBook(symbol="AAPL", bids=bids, asks=asks), 3.0)
    watch.take(pb.ConsolidatedBook(symbol="AAPL", bids=[level(99, 1, 2)], asks=asks), 4.0)
    assert watch.quotes("AAPL") == (99, 101)
    assert watch.engine_quotes("AAPL", 5.0) == (EngineQuote(1, 99, None, 4.0), EngineQuote(2, 99, 101, 1.0))
