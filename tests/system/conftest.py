"""Venues for the system tests; all share two, and tests that kill things start their own."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.system.disk import Disk
from tests.system.terminal import TICKERS, Terminal
from tests.system.venue import Venue

PIDS_CGROUPS: Final = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))


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
def few_threads() -> Iterator[Callable[[int], AbstractContextManager[None]]]:
    """Lets a process have no more threads or children than it has, for as long as a block lasts."""
    top = next((top for top in PIDS_CGROUPS if (top / "cgroup.procs").exists()), None)
    if top is None:
        pytest.skip("the system has no control groups")
    group = top / "matchbus-tests"
    try:
        group.mkdir(exist_ok=True)
    except OSError as error:
        pytest.skip(f"a control group cannot be made: {error}")
    if not (group / "pids.max").exists():
        group.rmdir()
        pytest.skip("no control group limits the number of processes here")

    @contextmanager
    def limited(pid: int) -> Iterator[None]:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text((group / "pids.current").read_text())
        yield
        (group / "pids.max").write_text("max")

    yield limited
    group.rmdir()


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
