"""Venues for the system tests; all share two, and tests that kill things start their own."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.disk import Disk
from tests.system.terminal import TICKERS, Terminal
from tests.system.venue import Venue


@pytest.fixture(scope="session")
def one_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Venue]:
    """A venue with one engine and many symbols."""
    symbols = [f"S{number}" for number in range(400)]
    venue = Venue(tmp_path_factory.mktemp("one"), engines=1, symbols=symbols)
    try:
        yield venue.start()
    finally:
        venue.stop()


@pytest.fixture(scope="session")
def three_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Venue]:
    """A venue with three engines and many symbols."""
    symbols = [f"S{number}" for number in range(400)]
    venue = Venue(tmp_path_factory.mktemp("three"), engines=3, symbols=symbols)
    try:
        yield venue.start()
    finally:
        venue.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of 64 MB of its own; only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"a full disk needs a disk of its own, and it cannot be mounted: {made.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def own_venue(tmp_path: Path) -> Iterator[Callable[..., Venue]]:
    """Makes venues that the test may kill."""
    made: list[Venue] = []

    def make(
        *, engines: int, symbols: tuple[str, ...] = ("AAA", "BBB", "CCC"), options: tuple[str, ...] = ()
    ) -> Venue:
        made.append(Venue(tmp_path, engines=engines, symbols=symbols, options=options).start())
        return made[-1]

    yield make
    for venue in made:
        venue.stop()


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Venue]:
    """A venue for the command line: two engines, a standby each, and at first nobody registered."""
    venue = Venue(
        tmp_path_factory.mktemp("commands"),
        engines=2,
        symbols=TICKERS,
        options=("--standbys", "1"),
    )
    try:
        yield venue.start()
    finally:
        venue.stop()


@pytest.fixture
def terminal(tmp_path: Path, market: Venue) -> Iterator[Terminal]:
    """A terminal where nobody is registered yet."""
    opened = Terminal(tmp_path / "config", market)
    yield opened
    opened.end()
