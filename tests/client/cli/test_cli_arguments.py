from decimal import Decimal
from itertools import permutations

import pytest

from client.cli.arguments import HelpShown
from client.cli.failures import Misuse
from client.cli.main import MODULES, find


def test_options_and_words_come_in_any_order() -> None:
    """An option between the words of an order does not eat one of them."""
    words = ["buy", "10", "aapl", "100.00"]
    parser = find("submit").parser()
    for options in permutations((["--ioc"], ["--client-order-id", "mine"])):
        for place in range(5):
            typed = [*words[:place], *options[0], *words[place:], *options[1]]
            read = parser.read(typed)
            assert (read.side, read.quantity, read.symbol, read.price) == (
                "buy",
                Decimal(10),
                "AAPL",
                Decimal("100.00"),
            )
            assert (read.ioc, read.fok, read.client_order_id) == (True, False, "mine")


def test_a_price_keeps_its_digits() -> None:
    """Numbers are decimals as written, never floats; signs pass, for the venue to refuse."""
    parser = find("submit").parser()
    assert str(parser.read(["sell", "0.00000001", "BTC-USD", "65000.10"]).price) == "65000.10"
    assert parser.read(["sell", "-5", "AAPL", "1"]).quantity == -5
    assert parser.read(["sell", "5", "AAPL", "--market"]).price is None


def test_the_largest_that_can_be_sent_is_taken() -> None:
    """What fits into the message is no usage error."""
    assert find("book").parser().read(["AAPL", "--depth", str(2**31 - 1)]).depth == 2**31 - 1
    assert find("fills").parser().read(["--since", str(2**63 - 1)]).since == 2**63 - 1
    assert find("replace").parser().read([str(2**64 - 1), "1", "1"]).order_id == 2**64 - 1


def test_an_address_may_be_of_any_kind() -> None:
    """Brackets are around an IPv6 address; NATS may be several servers."""
    for written in ("127.0.0.1:50050", "[::1]:1", "venue.example:65535"):
        assert find("context").parser().read(["set", "x", "--exchange", written]).exchange == written
    for written in (
        "localhost",
        "[::1]:4222",
        "tls://me:pw@nats.example",
        "nats://10.0.0.1:4222/,nats://10.0.0.2",
    ):
        assert find("context").parser().read(["set", "x", "--nats", written]).nats == written
    assert find("orders").parser().read(["--timeout", "2.5"]).timeout == 2.5


def test_replace_takes_an_order_by_either_id() -> None:
    """Two numbers are price and quantity; a third before them is the order."""
    parser = find("replace").parser()
    read = parser.read(["281474976710657", "99.5", "6"])
    assert (read.order_id, read.price, read.quantity) == (281474976710657, Decimal("99.5"), Decimal(6))
    read = parser.read(["99.5", "6", "--client-order-id", "mine"])
    assert (read.order_id, read.price, read.client_order_id) == (None, Decimal("99.5"), "mine")


@pytest.mark.parametrize(
    ("command", "words", "named"),
    [
        ("submit", ["buy", "nan", "AAPL", "1"], "'nan' is no number"),
        ("submit", ["buy", "1", "AAPL", "1e"], "'1e' is no number"),
        ("submit", ["buy", "1_0", "AAPL", "1"], "'1_0' is no number"),
        ("submit", ["buy", "٣", "AAPL", "1"], "'٣' is no number"),
        ("submit", ["buy", "1", "AAPL", "1", "--client-id", ""], "--client-id: it is empty"),
        *(
            ("orders", [option, ""], f"{option}: it is empty")
            for option in ("--context", "--exchange", "--nats", "--secret", "--password")
        ),
        *(
            ("feed", ["AAPL", "--nats", written], f"--nats: {written!r} is no address of NATS")
            for written in ("http://foo", "nats://", "//foo", "nats://a,http://b", "nats://a,")
        ),
        ("submit", ["buy", "1", "A*", "1"], "'A*' is no symbol"),
        ("submit", ["buy", "1", "AAPL", "1", "2"], "2"),
        ("submit", ["buy", "1", "AAPL", "1", "--po"], "--po"),
        ("replace", ["0", "1", "1"], "'0' is no order id"),
        ("replace", [str(2**64), "1", "1"], "is no order id"),
        ("replace", ["٣", "1", "1"], "'٣' is no order id"),
        ("fills", ["--since", "x"], "'x' is no whole number"),
        ("book", ["AAPL", "--depth", "-1"], "'-1' is no whole number"),
        ("book", ["AAPL", "--depth", str(2**31)], "--depth: '2147483648' is no whole number from 0 to 2147"),
        ("register", ["--engine", "9" * 5000], "--engine: '999"),
        ("fills", ["--since", str(2**63)], "--since: '9223372036854775808' is no whole number from 0 to 922"),
        ("replace", ["9" * 5000, "1", "1"], "is no order id"),
        ("submit", ["buy", "1e999999999", "AAPL", "1"], "'1e999999999' is no number"),
        ("submit", ["buy", "1", "AAPL", "1" * 5000], "is no number"),
        ("context", ["burn"], "'burn'"),
        ("context", ["set", "", "--password", "p"], "NAME: it is empty"),
        ("register", [""], "NAME: it is empty"),
        ("submit", ["buy", "1", "AAPL", "1", "--timeout", "x"], "--timeout: 'x' is no time"),
        ("submit", ["buy", "1", "AAPL", "1", "--timeout", "-1"], "--timeout: '-1' is no time"),
        ("submit", ["buy", "1", "AAPL", "1", "--client-order-id", ""], "'' must be 1 to 36"),
        ("cancel", ["--client-order-id", "ü"], "'ü' must be 1 to 36"),
        ("replace", ["1", "1", "--client-order-id", "x" * 37], "must be 1 to 36"),
        ("orders", ["--client-order-id", ""], "'' must be 1 to 36"),
        ("context", ["set", "x", "--exchange", "foo"], "--exchange: 'foo' is no address"),
        ("book", ["AAPL", "--exchange", ":50050"], "--exchange: ':50050' is no address"),
        ("orders", ["--exchange", "foo:65536"], "--exchange: 'foo:65536' is no address"),
    ],
)
def test_a_wrong_word_is_named(command: str, words: list[str], named: str) -> None:
    """What cannot be read raises with the word in its text, and in its hint how it is typed, in a line."""
    with pytest.raises(Misuse) as caught:
        find(command).parser().read(words)
    assert named in caught.value.text
    assert len(caught.value.text) < 200
    usage, _, more = caught.value.hint.partition("; ")
    assert usage.startswith(f"usage: matchbus {command}")
    assert usage.endswith("[options]")
    assert len(usage) < 80
    assert more == f"`matchbus {command} --help` lists the options"


def test_a_usage_names_the_words_and_no_option() -> None:
    """What a word is for is told where one is missing; at a prompt without the program's name."""
    words = "{buy,sell} QUANTITY SYMBOL [PRICE] [options]"
    with pytest.raises(Misuse) as caught:
        find("submit").parser().read(["buy"])
    assert caught.value.hint == f"usage: matchbus submit {words}; `matchbus submit --help` lists the options"
    with pytest.raises(Misuse) as caught:
        find("submit").parser(alone=False).read(["buy"])
    assert caught.value.hint == f"usage: submit {words}; `submit --help` lists the options"


@pytest.mark.parametrize("name", MODULES)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` tells what a command is for, and that JSON and contexts are to be had."""
    command = find(name)
    assert command.name == name
    with pytest.raises(HelpShown):
        command.parser().read(["--help"])
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "--context" in shown
    assert command.what.split(maxsplit=1)[0] in shown
