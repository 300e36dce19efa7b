"""Trade by the generated stubs alone, as in any other language: raw_grpc.py 127.0.0.1:50050 AAPL [password].

docs/reference.md has every call and field. Prices are ticks, quantities lots.
"""

import sys
import time
from functools import partial
from typing import Any

import grpc
from matchbus.v1 import matchbus_pb2 as pb
from matchbus.v1.matchbus_pb2_grpc import ExchangeStub, MatchingEngineStub

PATIENCE_S = 5.0


def main(exchange: str, symbol: str, password: str) -> None:
    """Register, rest an order twice under one id, look at it, trade with oneself and read the fills."""
    name = f"raw-{time.time_ns()}"
    with grpc.insecure_channel(exchange) as channel:
        client = pb.RegisterClientRequest(client_id=name, password=password, secret="raw's own")
        home = ExchangeStub(channel).RegisterClient(client, timeout=PATIENCE_S)
    print(f"{name} is at home on E{home.engine}, {home.engine_address}")

    who: dict[str, Any] = {"metadata": [("authorization", f"Bearer {home.token}")], "timeout": PATIENCE_S}
    with grpc.insecure_channel(home.engine_address) as channel:
        engine = MatchingEngineStub(channel)
        limit = partial(pb.NewOrder, symbol=symbol, type=pb.ORDER_TYPE_LIMIT, price=100, quantity=5)
        bid = limit(client_order_id="bid", side=pb.SIDE_BUY)
        for _ in range(2):  # after any doubt: the same again under the same id
            reply = engine.SubmitOrder(bid, **who)
            print(
                f"bid {pb.OrderStatus.Name(reply.status)}, leaves {reply.leaves_quantity}, {reply.duplicate=}"
            )

        refused = engine.SubmitOrder(pb.NewOrder(client_order_id="none", symbol=symbol), **who)
        print(f"{pb.RejectReason.Name(refused.reject_reason)}: {refused.reject_text}")

        ask = limit(client_order_id="ask", side=pb.SIDE_SELL, time_in_force=pb.TIME_IN_FORCE_IOC)
        commands = [pb.Command(new=ask), pb.Command(cancel=pb.CancelOrderRequest(client_order_id="bid"))]
        for message in engine.OrderEntry(iter([pb.OrderEntryRequest(commands=commands)]), **who):
            for reply in message.replies:
                print(f"{pb.OrderStatus.Name(reply.status)} {pb.RejectReason.Name(reply.reject_reason)}")

        for batch in engine.GetFills(pb.GetFillsRequest(since_sequence=0), **who):
            for fill in batch.fills:
                print(f"fill {fill.sequence}: {pb.Side.Name(fill.side)} {fill.quantity} lots at {fill.price}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2], *(sys.argv[3:] or ["password"]))
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
