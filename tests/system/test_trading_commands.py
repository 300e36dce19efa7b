"""The command line as a trader and as a script use it, against one real market."""

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.terminal import DEADLINE_S, TICKERS, Running, Terminal
from tests.system.venue import COMMAND, REPOSITORY, Venue, free_port, fresh

_symbols = iter(TICKERS[2:])


@pytest.fixture
def symbol() -> str:
    """A symbol that no other test trades."""
    return next(_symbols)


@pytest.fixture(scope="module")
def trader(tmp_path_factory: pytest.TempPathFactory, market: Venue) -> Terminal:
    """A terminal where somebody is registered, for commands that are to fail."""
    terminal = Terminal(tmp_path_factory.mktemp("trader"), market)
    terminal.register()
    return terminal


def failed(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check that a command failed with this code, saying all this and no traceback."""
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    for word in words:
        assert word in said, said


def test_nobodys_executions_are_said_to_be_none(trader: Terminal) -> None:
    """A mistyped client is no silence; stdout has reports only."""
    done = trader.run("dropcopy", "--no-follow", "--client", "nobody")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "there are no execution reports of 'nobody'\n"


def test_no_wrong_address_of_nats_is_kept(trader: Terminal) -> None:
    """Later commands would find it in the context, and not where it came from."""
    done = trader.run("register", "eve", MATCHBUS_NATS="http://there")
    failed(done, 1, "'http://there' is no address of NATS", "(from MATCHBUS_NATS)")
    assert "eve" not in trader.text("context", "list")


def test_up_names_the_commands_to_type_next(market: Venue, terminal: Terminal) -> None:
    """The two commands that `up` prints register a newcomer and enter an order, as they stand."""
    steps: list[str] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(steps) < 2:
        assert time.monotonic() < deadline, market.log()
        time.sleep(0.02)
        steps = re.findall(r"^ +matchbus (.*)\n", market.log(), re.MULTILINE)
    assert "is registered" in terminal.text(*steps[0].split())
    assert terminal.text(*steps[1].split()).startswith("NEW")
    terminal.text("cancel", "--all")


def test_registration_is_kept_for_later_commands(terminal: Terminal, symbol: str) -> None:
    """After `register` nothing more has to be said; the file is the owner's only and shows no secret."""
    name = terminal.register(engine=2)
    answer = terminal.json("submit", "buy", "10", symbol, "100.00")
    assert answer["status"] == "new"
    assert answer["order_id"] >> 48 == 2
    assert (answer["leaves_quantity"], answer["reject_reason"]) == ("10", None)
    (kept,) = Path(terminal.environment["XDG_CONFIG_HOME"]).rglob("*.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    secret = json.loads(kept.read_text())["contexts"][name]["secret"]
    assert secret
    assert secret not in terminal.text("context", "show") + terminal.text("context", "list", "--json")
    assert terminal.json("context", "show", "--secrets")["secret"] == secret
    again = terminal.json("register", name, "--exchange", terminal.venue.exchange)
    assert (again["client_id"], again["engine"], again["context"]) == (name, 2, name)


def test_registrations_at_the_same_time_are_all_kept(terminal: Terminal) -> None:
    """Clients that are registered at once all have their secrets afterwards."""
    names = [fresh("trader") for _ in range(4)]
    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(terminal.register, names))
    assert [terminal.lines("orders", "--context", name) for name in names] == [[]] * len(names)


def test_contexts_tell_traders_apart(terminal: Terminal, symbol: str) -> None:
    """Two traders in one file: each command is the chosen one's; a removed context is gone."""
    ann, ben = terminal.register(), terminal.register()
    terminal.text("submit", "sell", "1", symbol, "100", "--context", ann)
    assert terminal.lines("orders") == []
    assert len(terminal.lines("orders", "--context", ann)) == 1
    terminal.text("context", "use", ann)
    assert len(terminal.lines("orders")) == 1
    assert {c["name"]: c["current"] for c in terminal.lines("context", "list")} == {ann: True, ben: False}
    terminal.text("context", "set", ann, "--exchange", "127.0.0.1:1")
    failed(terminal.run("orders", "--timeout", "0.5"), 1, "127.0.0.1:1", f"from context {ann}")
    # What is typed comes before what is kept.
    assert len(terminal.lines("orders", "--exchange", terminal.venue.exchange)) == 1
    terminal.text("context", "remove", ann)
    failed(terminal.run("orders"), 1, "nobody is registered", "matchbus register")
    failed(terminal.run("context", "use", ann), 1, ann, ben)


def test_the_environment_is_enough(terminal: Terminal, symbol: str) -> None:
    """A script without contexts says everything by its environment."""
    done = terminal.run(
        *("submit", "buy", "1", symbol, "1", "--json"),
        MATCHBUS_EXCHANGE=terminal.venue.exchange,
        MATCHBUS_CLIENT_ID=terminal.register(),
        MATCHBUS_SECRET=terminal.json("context", "show", "--secrets")["secret"],
        XDG_CONFIG_HOME="/nowhere",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "new"


def test_an_order_lives_and_ends(terminal: Terminal, symbol: str) -> None:
    """Submit, show, replace, trade, cancel: each answer says what became of the order."""
    maker, taker = terminal.register(engine=1), terminal.register(engine=2)
    resting = terminal.json("submit", "sell", "10", symbol, "100", "--context", maker)
    number = str(resting["order_id"])
    replaced = terminal.json("replace", number, "101.5", "8", "--context", maker)
    assert (replaced["status"], replaced["leaves_quantity"]) == ("new", "8")
    taken = terminal.json("submit", "buy", "3", symbol, "102", "--ioc", "--context", taker)
    assert (taken["status"], taken["cumulative_quantity"]) == ("filled", "3")
    assert [(f["price"], f["quantity"], f["engine"], f["liquidity"]) for f in taken["fills"]] == [
        ("101.50", "3", 1, "taker")
    ]
    (order,) = terminal.lines("orders", symbol, "--context", maker)
    assert (order["price"], order["quantity"], order["leaves_quantity"]) == ("101.50", "8", "5")
    text = terminal.text("cancel", number, "--context", maker)
    assert text.startswith(f"CANCELLED  order {number}\n  filled 3 at 101.50 on average")
    (order,) = terminal.lines("orders", number, "--context", maker)
    assert (order["status"], order["cancelled_quantity"]) == ("cancelled", "5")
    failed(terminal.run("cancel", number, "--context", maker), 1, "REFUSED  ORDER_CLOSED")
    (position,) = terminal.lines("positions", symbol, "--context", taker)
    assert (position["quantity"], position["realized_pnl"]) == ("3", "0.00")
    (fill,) = terminal.lines("fills", "--context", maker)
    assert (fill["sequence"], fill["side"], fill["liquidity"]) == (1, "sell", "maker")
    assert terminal.lines("fills", "--since", "1", "--context", maker) == []


def test_every_option_of_an_order_arrives(terminal: Terminal, symbol: str) -> None:
    """--market, --fok, --post-only, --no-route, --stp and --client-order-id mean what they say."""
    terminal.register(engine=1)
    terminal.text("submit", "sell", "5", symbol, "100")
    assert terminal.json("submit", "buy", "9", symbol, "100", "--fok")["status"] == "cancelled"
    failed(terminal.run("submit", "buy", "1", symbol, "100", "--post-only"), 1, "POST_ONLY_WOULD_CROSS")
    kept_apart = terminal.json("submit", "buy", "1", symbol, "100", "--stp", "cancel_newest")
    assert (kept_apart["status"], len(kept_apart["prevented"])) == ("cancelled", 1)
    elsewhere = terminal.register(engine=2)
    stayed = terminal.json("submit", "buy", "1", symbol, "100", "--no-route")
    assert (stayed["status"], stayed["cumulative_quantity"]) == ("cancelled", "0")
    first = terminal.json("submit", "buy", "2", symbol, "--market", "--client-order-id", "mine")
    assert (first["status"], first["client_order_id"]) == ("filled", "mine")
    again = terminal.json("submit", "buy", "2", symbol, "--market", "--client-order-id", "mine")
    assert (again["order_id"], again["duplicate"]) == (first["order_id"], True)
    (order,) = terminal.lines("orders", "--client-order-id", "mine", "--context", elsewhere)
    assert (order["type"], order["status"]) == ("market", "filled")


def test_cancel_all_takes_what_it_is_told(terminal: Terminal, symbol: str) -> None:
    """`cancel --all` counts; a symbol and a side narrow it."""
    terminal.register()
    other = next(_symbols)
    for words in (("buy", "1", symbol), ("sell", "1", symbol), ("buy", "1", other)):
        terminal.text("submit", *words, "50" if words[0] == "buy" else "60")
    assert terminal.json("cancel", "--all", symbol, "--side", "sell") == {"cancelled": 1}
    assert terminal.json("cancel", "--all", other.lower()) == {"cancelled": 1}
    assert terminal.text("cancel", "--all") == "CANCELLED  1 order\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "buy", "0", "MSFT", "100"], ["REFUSED  INVALID_QUANTITY", "quantity 0"]),
        (["submit", "buy", "1", "MSFT", "-1"], ["REFUSED  INVALID_PRICE", "buy 1 MSFT at -1"]),
        (["submit", "buy", "1", "MSFT", "1", "--post-only", "--ioc"], ["REFUSED  CONFLICTING_INSTRUCTIONS"]),
        (["submit", "buy", "1", "MSFT", "1.005"], ["1.005", "tick size is 0.01"]),
        (["submit", "buy", "1", "NONE", "1"], ["'NONE' is not traded here", "AAPL, ADBE"]),
        (["book", "NONE", "--consolidated"], ["'NONE' is not traded here", "AAPL, ADBE"]),
        (["feed", "NONE"], ["'NONE' is not traded here", "AAPL, ADBE"]),
        (["orders", "NONE"], ["'NONE' is not traded here", "AAPL, ADBE"]),
        (["cancel", "5"], ["REFUSED  UNKNOWN_ORDER", "matchbus orders"]),
        (["replace", "5", "1", "1"], ["REFUSED  UNKNOWN_ORDER"]),
        (["orders", "5"], ["matchbus orders"]),
        (["orders", "--secret", "wrong"], ["secret", "from --secret", "MATCHBUS_SECRET"]),
        (["orders", "--password", "wrong"], ["password", "from --password"]),
        (["orders", "--context", "none"], ["'none'", "matchbus register"]),
        (
            ["feed", "MSFT", "--nats", "nats://127.0.0.1:1", "--timeout", "1"],
            ["nats://127.0.0.1:1", "--nats"],
        ),
    ],
    ids=lambda words: " ".join(words)[:50],
)
def test_what_fails_says_why_and_what_to_do(words: list[str], said: list[str], trader: Terminal) -> None:
    """A refused or impossible command exits with 1 and names the reason, the value and the way out."""
    failed(trader.run(*words), 1, *said)


def test_failures_are_json_where_answers_are(trader: Terminal) -> None:
    """With --json a refusal is an answer on stdout, a failure an object on stderr."""
    done = trader.run("submit", "buy", "0", "MSFT", "100", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["reject_reason"] == "invalid_quantity"
    done = trader.run("book", "NONE", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert set(json.loads(done.stderr)) == {"error", "hint"}
    done = trader.run("book", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "SYMBOL" in json.loads(done.stderr)["error"]


def test_nobody_there_is_told_at_once(terminal: Terminal) -> None:
    """Without a context the way to register is told; without an exchange the way to start one."""
    failed(terminal.run("orders"), 1, "nobody is registered here", "matchbus register NAME")
    nowhere = ("--exchange", "127.0.0.1:1", "--timeout", "0.3")
    for words in (("register", "x"), ("engines",), ("book", "MSFT", "--consolidated")):
        failed(
            terminal.run(*words, *nowhere),
            1,
            "no exchange answers at 127.0.0.1:1",
            "matchbus up",
            "nobody listens",
        )


def test_books_are_shown_in_every_way(terminal: Terminal, symbol: str) -> None:
    """The home book, its orders with one's own marked, its top, and the whole market's with shares."""
    terminal.register(engine=1)
    other = terminal.json("submit", "buy", "7", symbol, "10")["order_id"]
    here = terminal.register(engine=1)
    own = terminal.json("submit", "buy", "2", symbol, "10")["order_id"]
    terminal.text("submit", "buy", "1", symbol, "9")
    terminal.register(engine=2)
    terminal.text("submit", "sell", "4", symbol, "11")
    book = terminal.json("book", symbol, "--context", here)
    assert [(level["price"], level["quantity"], level["order_count"]) for level in book["bids"]] == [
        ("10.00", "9", 2),
        ("9.00", "1", 1),
    ]
    assert book["asks"] == []
    assert len(terminal.json("book", symbol, "--depth", "1", "--context", here)["bids"]) == 1
    assert f"{other}:7  {own}:2*" in terminal.text("book", symbol, "--orders", "--context", here)
    whole = terminal.json("book", symbol, "--consolidated")
    assert [(share["engine"], share["quantity"]) for share in whole["asks"][0]["engines"]] == [(2, "4")]
    assert whole["bids"][0]["engines"][0]["engine"] == 1


def test_fills_are_followed_until_interrupted(terminal: Terminal, symbol: str) -> None:
    """`fills -f` tells old fills and new ones, each once; Ctrl-C ends it with 0."""
    name = terminal.register()
    terminal.text("submit", "sell", "3", symbol, "10")
    terminal.text("submit", "buy", "1", symbol, "10")
    following = terminal.start("fills", "-f", "--json", "--context", name)
    assert [json.loads(line)["sequence"] for line in following.until(2)] == [1, 2]
    terminal.text("submit", "buy", "1", symbol, "10")
    assert [json.loads(line)["sequence"] for line in following.until(4)] == [1, 2, 3, 4]
    assert following.interrupt() == 0


def test_sigterm_ends_what_goes_on(terminal: Terminal, symbol: str) -> None:
    """As Ctrl-C does, with exit code 0."""
    terminal.register()
    terminal.text("submit", "buy", "1", symbol, "10")
    terminal.text("submit", "sell", "1", symbol, "10")
    commands = ("dropcopy", "fills -f", f"book {symbol} --watch", "engines --watch", f"feed {symbol}")
    running = {command: terminal.start(*command.split(), "--json") for command in commands}
    for one in running.values():
        one.until(1)
    codes = {command: one.interrupt(signal.SIGTERM) for command, one in running.items()}
    assert codes == dict.fromkeys(commands, 0)


def test_a_book_is_watched_until_interrupted(terminal: Terminal, symbol: str) -> None:
    """`book --watch` shows the book and every change of it; Ctrl-C ends it with 0."""
    terminal.register()
    for where in ((), ("--consolidated",)):
        watching = terminal.start("book", symbol, "--watch", "--json", *where)
        assert json.loads(watching.until(1)[0])["bids"] == []
        number = terminal.json("submit", "buy", "3", symbol, "10")["order_id"]
        assert json.loads(watching.until(2)[1])["bids"][0]["quantity"] == "3"
        terminal.text("cancel", str(number))
        assert json.loads(watching.until(3)[2])["bids"] == []
        assert watching.interrupt() == 0


def test_the_feed_is_followed_until_interrupted(terminal: Terminal, symbol: str) -> None:
    """`feed` begins with each engine's snapshot, then gives deltas that follow on, and trades."""
    terminal.register(engine=1)
    following = terminal.start("feed", symbol, "--json")
    first = [json.loads(line) for line in following.until(2)]
    assert {(message["kind"], message["engine"]) for message in first} == {("snapshot", 1), ("snapshot", 2)}
    terminal.text("submit", "sell", "3", symbol, "10.50")
    terminal.text("submit", "buy", "1", symbol, "10.50")
    news = [json.loads(line) for line in following.until(5)][2:]
    deltas = [message for message in news if message["kind"] == "delta"]
    assert [delta["outcome"] for delta in deltas] == ["applied", "applied"]
    assert deltas[0]["levels"] == [{"side": "sell", "price": "10.50", "quantity": "3", "order_count": 1}]
    (trade,) = [message for message in news if message["kind"] == "trade"]
    assert (trade["price"], trade["quantity"], trade["taker_side"]) == ("10.50", "1", "buy")
    assert following.interrupt() == 0


def test_a_pipe_trades(terminal: Terminal, symbol: str) -> None:
    """Lines from a pipe are done one after the other over one connection; one that fails makes the code 1."""
    terminal.register()
    script = (
        f"buy 5 {symbol} 99.00\n\n# a comment\norders\nbook {symbol}\ncancel --all\nquit\nbuy 1 {symbol} 1\n"
    )
    done = terminal.run("trade", "--json", stdin=script)
    assert (done.returncode, done.stderr) == (0, "")
    bought, order, book, cancelled = [json.loads(line) for line in done.stdout.splitlines()]
    assert (bought["status"], order["order_id"]) == ("new", bought["order_id"])
    assert (book["bids"][0]["price"], cancelled) == ("99.00", {"cancelled": 1})
    assert terminal.lines("orders") == []  # nothing after `quit` counts
    done = terminal.run("trade", stdin=f"foo\nbuy 1 {symbol} x\nbuy 0 {symbol} 1\nfills -f\nbuy 1 {symbol} 1")
    failed(done, 1, "line 1: 'foo' is no command here", "line 2: ", "INVALID_QUANTITY", "line 4: ")
    assert "NEW" in done.stdout  # the last line was done all the same, without an end of line


def test_a_file_trades(terminal: Terminal, symbol: str, tmp_path: Path) -> None:
    """Stdin may be a plain file."""
    terminal.register()
    (tmp_path / "script").write_text(f"sell 5 {symbol} 99.00\n")
    with (tmp_path / "script").open() as script:
        done = subprocess.run(
            [*COMMAND, "trade"],
            cwd=REPOSITORY,
            env=terminal.environment,
            stdin=script,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        )
    assert done.stdout.startswith(f"NEW  sell 5 {symbol} at 99.00")


def test_the_venue_tells_how_it_is(terminal: Terminal) -> None:
    """`engines` lists who reigns and who stands by; `status` tells of all parts, and of a missing one."""
    engines = terminal.lines("engines", "--exchange", terminal.venue.exchange)
    assert [(engine["engine"], engine["role"], engine["state"]) for engine in engines] == [
        (1, "primary", "live"),
        (2, "primary", "live"),
        (1, "standby", None),
        (2, "standby", None),
    ]
    where = ("--exchange", terminal.venue.exchange, "--nats", terminal.venue.nats_url)
    seen = terminal.json("status", *where)
    assert (seen["well"], seen["client"], len(seen["engines"])) == (True, None, 4)
    assert seen["nats"]["reachable"]
    name = terminal.register()
    seen = terminal.json("status")
    assert (seen["client"]["client_id"], seen["client"]["registered"]) == (name, True)
    done = terminal.run("status", "--json", "--nats", "nats://127.0.0.1:1", "--timeout", "1")
    assert done.returncode == 1
    seen = json.loads(done.stdout)
    assert (seen["well"], seen["exchange"]["reachable"], seen["nats"]["reachable"]) == (False, True, False)
    failed(terminal.run("status", "--exchange", "127.0.0.1:1", "--timeout", "1"), 1, "matchbus up")


def test_tools_find_the_market_of_the_context(terminal: Terminal, symbol: str) -> None:
    """What an operator runs looks at the market of the context; `admin handover` says who reigns."""
    terminal.register()
    terminal.text("submit", "buy", "1", symbol, "1")
    assert terminal.json("journal", "digest", "1")["engine"] == 1
    before = next(e for e in terminal.lines("engines") if (e["engine"], e["role"]) == (1, "primary"))
    done = terminal.json("admin", "handover", "1")
    assert (done["old_address"], done["epoch"]) == (before["address"], before["epoch"] + 1)
    assert len(terminal.lines("orders")) == 1
    (made, *_) = terminal.lines("admin", "snapshot", "1")
    assert made["epoch"] == done["epoch"]
    assert made in terminal.lines("snapshot", "list", "1")


@pytest.mark.parametrize("words", [("fills", "-f"), ("feed", "{symbol}")])
def test_a_reader_that_has_seen_enough_is_no_failure(
    words: tuple[str, ...], terminal: Terminal, symbol: str
) -> None:
    """`matchbus fills -f --json | head -1` ends quietly, and so does `feed`."""
    terminal.register()
    for _ in range(2):
        terminal.text("submit", "sell", "1", symbol, "10")
        terminal.text("submit", "buy", "1", symbol, "10")
    following = terminal.start(*(word.format(symbol=symbol) for word in words), "--json")
    following.until(1)
    assert following.process.stdout is not None
    following.process.stdout.close()
    terminal.text("submit", "sell", "1", symbol, "10")
    terminal.text("submit", "buy", "1", symbol, "10")
    assert following.process.wait(DEADLINE_S) == 0
    assert following.errors() == ""


def test_up_and_snapshots_in_a_narrow_terminal(tmp_path: Path) -> None:
    """In 40 columns of an encoding with few characters the market runs, and no address or number is cut."""
    narrow = os.environ | {"COLUMNS": "40", "PYTHONIOENCODING": "latin-1", "PYTHONUNBUFFERED": "1"}
    ready_file = tmp_path / "ready.json"
    command = [*COMMAND, "up", "--engines", "1", "--metrics", "--ready-file", str(ready_file)]

    def snapshot(*words: str) -> str:
        done = subprocess.run(
            [*COMMAND, "snapshot", *words],
            env=narrow,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    running = Running(command, narrow)
    try:
        running.until(12)
        ready = json.loads(ready_file.read_text())
        made = snapshot("make", "1", "--nats", ready["nats_url"])
        listed = snapshot("list", "1", "--nats", ready["nats_url"], "--json")
        assert running.interrupt() == 0
        assert running.process.stdout is not None
        shown = running.until(12)
    finally:
        running.end()
    words = set(" ".join(shown).split())
    for place in (ready["exchange"], ready["engines"]["1"]):
        assert {place["address"], place["metrics"], str(place["pid"])} <= words
    assert ready["nats_url"] in words
    assert json.loads(listed.splitlines()[0])["state_digest"][:12] in made.split()


def test_up_tells_a_program_where_everything_is(tmp_path: Path) -> None:
    """`up --json` prints what the ready file holds in one line, and nothing else until its end.

    With --dashboard the page is served at the address there, and says where its market's NATS is.
    """
    port = free_port()
    command = [*COMMAND, "up", "--engines", "1", "--durability", "none", "--json"]
    command += ["--dashboard", "--dashboard-port", str(port)]
    command += ["--data", str(tmp_path / "data"), "--ready-file", str(tmp_path / "ready.json")]
    running = Running(command, dict(os.environ))
    try:
        (line,) = running.until(1)
        ready = json.loads(line)
        assert ready == json.loads((tmp_path / "ready.json").read_text())
        assert ready["dashboard"] == f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(ready["dashboard"], timeout=5) as page:
            assert b"<title>Matchbus</title>" in page.read()
        with urllib.request.urlopen(f"{ready['dashboard']}/config.json", timeout=5) as config:
            (nats,) = json.load(config)["nats"]
        assert re.fullmatch(r"ws://127\.0\.0\.1:[1-9]\d+", nats)
        assert running.interrupt() == 0
        assert running.process.stdout is not None
        assert running.process.stdout.read() == b""
    finally:
        running.end()
