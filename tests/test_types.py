"""What a type checker sees of us in somebody else's project."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROGRAM: Final = """\
import asyncio
from decimal import Decimal

from matchbus.listings import Turns
from matchbus.v1 import matchbus_pb2 as pb

from bus.subjects import feed
from client import Client, Fill, OrderResult, Side
from engine.terms import OrderType
from exchange.assignment import choose_home
from simulation.agents.terms import Intent, View


async def main(address: str) -> list[Fill]:
    async with Client.connect(address, client_id="zoe", password="password", secret="zoe's own") as client:
        word = "buy" if client.engine == 1 else "sell"
        result: OrderResult = await client.submit("AAPL", word, quantity=10, price="101.25", post_only=True)
        await client.submit("AAPL", Side.SELL, Decimal(10), Decimal("101.25"), time_in_force="ioc")
        await client.submit("AAPL", "sell", 10, 101.25)  # wrong
        await client.cancel(order_id=result.order_id)
        return [fill async for fill in client.fills(since=0, follow=False)]


class Waits:
    def decide(self, views: list[View]) -> list[Intent]:
        return []


print(asyncio.run(main("127.0.0.1:50050"))[0].price + 1, OrderType.LIMIT, pb.SIDE_BUY)
print(feed(1), choose_home, Turns)
"""


def test_a_user_is_told_of_a_float(tmp_path: Path) -> None:
    """`mypy --strict` on a program outside this repository finds its one mistake, and nothing else."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--no-error-summary"]
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache"), program.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    (wrong,) = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in line]
    (error,) = (done.stdout + done.stderr).splitlines()
    assert error.startswith(f"program.py:{wrong}: error: ")
    assert '"float"; expected "Decimal | str | int | None"' in error


def test_every_package_says_that_it_has_types() -> None:
    """What is installed has a `py.typed`, without which a checker looks at none of it."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    for package in packages["packages"]:
        assert (ROOT / package / "py.typed").is_file(), package
