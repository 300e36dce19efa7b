"""submit, cancel, replace, orders."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

from client import (
    Client,
    Instrument,
    MatchbusError,
    OrderResult,
    OrderStatus,
    SelfTradePrevention,
    TimeInForce,
)
from client.cli.arguments import Parser, number, order_id, own_id, symbol
from client.cli.command import Command, Options
from client.cli.desk import Desk, check_traded
from client.cli.failures import (
    DONE,
    REFUSED,
    Failure,
    Interrupted,
    Misuse,
    by_own_id,
    how_to_find_out,
    reason_of,
)
from client.cli.sheets import counted, orders_sheet, result_lines, speaks_of_units

T = TypeVar("T")


def _arrange_submit(parser: Parser) -> None:
    parser.add_argument("side", choices=("buy", "sell"))
    parser.add_argument("quantity", metavar="QUANTITY", type=number)
    parser.add_argument("symbol", metavar="SYMBOL", type=symbol)
    parser.add_argument("price", metavar="PRICE", type=number, nargs="?", help="none for a --market order")
    parser.add_argument("--market", action="store_true", help="at any price the book gives; never rests")
    duration = parser.add_mutually_exclusive_group()
    duration.add_argument("--ioc", action="store_true", help="what does not trade at once is cancelled")
    duration.add_argument("--fok", action="store_true", help="trade all of it at once, or nothing")
    parser.add_argument("--post-only", action="store_true", help="refuse it rather than trade at once")
    parser.add_argument("--no-route", action="store_true", help="trade at the home engine only")
    parser.add_argument(
        "--stp",
        metavar="MODE",
        choices=[str(mode) for mode in SelfTradePrevention],
        default=str(SelfTradePrevention.NONE),
        help="self-trade prevention: %(choices)s",
    )
    parser.add_argument(
        "--client-order-id", metavar="ID", type=own_id, help="an id of your own; repeating it is safe"
    )


async def submit(options: Options, desk: Desk) -> int:
    """Enter one order."""
    what = f"{options.side} {options.quantity:f} {options.symbol}"
    if options.market and options.price is not None:
        raise Misuse(
            f"a market order has no price, and {options.price:f} was given",
            "leave out the price, or --market; a limit order with --ioc trades at once too",
        )
    if not options.market and options.price is None:
        raise Misuse("a limit order needs a price", f"`matchbus submit {what} PRICE`, or --market")
    time_in_force = TimeInForce.IOC if options.ioc else TimeInForce.FOK if options.fok else TimeInForce.GTC
    client = await desk.client()
    # Made here, so that it can be told when nobody waits for the answer any more.
    own = options.client_order_id or client.new_client_order_id()
    async with _under_way(desk, "the order may or may not have been entered", how_to_find_out(own)):
        result = await client.submit(
            options.symbol,
            options.side,
            options.quantity,
            options.price,
            type="market" if options.market else "limit",
            time_in_force=time_in_force,
            post_only=options.post_only,
            self_trade_prevention=options.stp,
            do_not_route=options.no_route,
            client_order_id=own,
        )
    price = "at market" if options.market else f"at {options.price:f}"
    return _answer(desk, result, f"{what} {price}", client.instruments.get(options.symbol))


def _arrange_cancel(parser: Parser) -> None:
    parser.add_argument("target", metavar="ORDER_ID", nargs="?", help="with --all: a symbol")
    parser.add_argument("--client-order-id", metavar="ID", type=own_id, help="the order by your own id")
    parser.add_argument("--all", action="store_true", help="all open orders, of one symbol if named")
    parser.add_argument("--side", choices=("buy", "sell"), help="with --all: of this side only")


async def cancel(options: Options, desk: Desk) -> int:
    """Cancel one order, or all."""
    _check_one(
        "cancel",
        {
            "ORDER_ID": options.target is not None and not options.all,
            "--client-order-id": options.client_order_id is not None,
            "--all": options.all,
        },
    )
    if options.side is not None and not options.all:
        raise Misuse("--side goes with --all only", "leave it out: an order's id says all")
    if options.all:
        return await _cancel_all(_typed(symbol, options.target), options.side, desk)
    number = _typed(order_id, options.target)
    client = await desk.client()
    hint = _how_to_look(number, options.client_order_id)
    async with _under_way(desk, "the order may or may not have been cancelled", hint):
        result = await client.cancel(order_id=number, client_order_id=options.client_order_id)
    return _answer(desk, result, "")


async def _cancel_all(of_symbol: str | None, side: str | None, desk: Desk) -> int:
    client = await desk.client()
    check_traded(of_symbol, client.instruments)
    hint = "`matchbus orders` lists what is open"
    async with _under_way(desk, "the orders may or may not have been cancelled", hint):
        count = await client.cancel_all(of_symbol, side)
    desk.output.answer({"cancelled": count}, f"CANCELLED  {counted(count, 'order')}")
    return DONE


def _arrange_replace(parser: Parser) -> None:
    parser.add_argument("order_id", metavar="ORDER_ID", nargs="?", type=order_id)
    parser.add_argument("price", metavar="PRICE", type=number)
    parser.add_argument(
        "quantity", metavar="QUANTITY", type=number, help="the new total, with what is filled"
    )
    parser.add_argument("--client-order-id", metavar="ID", type=own_id, help="the order by your own id")


async def replace(options: Options, desk: Desk) -> int:
    """Give an order a new price and total quantity."""
    if options.order_id is None and options.client_order_id is None:
        raise Misuse(
            f"no order is named: {options.price:f} was read as PRICE, {options.quantity:f} as QUANTITY",
            "name it before the price, or by --client-order-id: `matchbus orders` lists the ids",
        )
    _check_one(
        "replace",
        {
            "ORDER_ID": options.order_id is not None,
            "--client-order-id": options.client_order_id is not None,
        },
    )
    client = await desk.client()
    hint = _how_to_look(options.order_id, options.client_order_id)
    async with _under_way(desk, "the order may or may not have been replaced", hint):
        result = await client.replace(
            price=options.price,
            quantity=options.quantity,
            order_id=options.order_id,
            client_order_id=options.client_order_id,
        )
    instrument = await _instrument_of(options, client) if speaks_of_units(result) else None
    return _answer(desk, result, f"{options.quantity:f} at {options.price:f}", instrument)


async def _instrument_of(options: Options, client: Client) -> Instrument | None:
    """What an order trades, which its replace does not say; None when nobody can tell just now."""
    with suppress(MatchbusError):
        order = await client.order(order_id=options.order_id, client_order_id=options.client_order_id)
        return client.instruments[order.symbol]
    return None


def _arrange_orders(parser: Parser) -> None:
    parser.add_argument(
        "target", metavar="SYMBOL|ORDER_ID", nargs="?", help="only this symbol, or one order, open or not"
    )
    parser.add_argument(
        "--client-order-id", metavar="ID", type=own_id, help="one order by your own id, open or not"
    )


async def orders(options: Options, desk: Desk) -> int:
    """List open orders, or show one."""
    own, target = options.client_order_id, options.target
    if own is not None and target is not None:
        raise Misuse(f"both {target!r} and --client-order-id {own!r} were given", "name one of them")
    is_number = target is not None and target.isdecimal()
    number = _typed(order_id, target) if is_number else None
    of_symbol = None if is_number else _typed(symbol, target)
    client = await desk.client()
    if target in client.instruments:  # one may be made of digits; order ids have fifteen and more
        number, of_symbol = None, target
    check_traded(of_symbol, client.instruments)
    async with desk.output.waiting("waiting for the engine"):
        if number is not None or own is not None:
            found = [await client.order(order_id=number, client_order_id=own)]
        else:
            found = await client.open_orders(of_symbol)
    desk.output.table(found, lambda: orders_sheet(found), nothing="no open orders")
    return DONE


@asynccontextmanager
async def _under_way(desk: Desk, doubt: str, hint: str) -> AsyncIterator[None]:
    """Around a command that changes something: when its answer does not come, say what is then unknown."""
    try:
        async with desk.output.waiting("waiting for the engine"):
            yield
    except asyncio.CancelledError:
        raise Interrupted(f"interrupted: {doubt}", hint) from None
    except MatchbusError as error:
        if not error.sent:
            raise
        raise Failure(f"{doubt}: {reason_of(error)}", hint) from error


def _how_to_look(number: int | None, own: str | None) -> str:
    """How to see what has become of an order, named by one of its ids."""
    return f"see `matchbus orders {number if own is None else by_own_id(own)}`"


def _typed(kind: Callable[[str], T], text: str | None) -> T | None:
    """What a word means that is read as one kind or another. Raises `Misuse`."""
    try:
        return None if text is None else kind(text)
    except argparse.ArgumentTypeError as error:
        raise Misuse(str(error)) from error


def _check_one(name: str, given: dict[str, bool]) -> None:
    """Raise `Misuse` unless exactly one of these was typed."""
    typed = [way for way, there in given.items() if there]
    if len(typed) != 1:
        ways = ", ".join(given)
        found = " and ".join(typed) or "nothing"
        raise Misuse(f"{found} given: {name} takes exactly one of {ways}", "`matchbus orders` lists the ids")


def _answer(desk: Desk, result: OrderResult, what: str, instrument: Instrument | None = None) -> int:
    """Show the engine's answer; the exit code."""
    code = REFUSED if result.status is OrderStatus.REJECTED else DONE
    desk.output.answer(result, *result_lines(result, what, instrument), code=code)
    return code


COMMANDS: Final = (
    Command("submit", "Enter an order.", _arrange_submit, submit, changes=True),
    Command("cancel", "Cancel an order, or all.", _arrange_cancel, cancel, changes=True),
    Command(
        *("replace", "Give an order a new price and a new total quantity.", _arrange_replace, replace),
        changes=True,
    ),
    Command("orders", "List open orders, or show one.", _arrange_orders, orders),
)
