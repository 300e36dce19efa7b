"""docs/tutorials: what is typed there gives what stands there, and the tests that it names exist."""

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import itertools
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Final

import pytest

from simulation.cluster import Cluster
from tests.waiting import until

ROOT: Final = Path(__file__).resolve().parent.parent
TUTORIALS: Final = ROOT / "docs" / "tutorials"
EXAMPLES: Final = ROOT / "examples"
DEADLINE_S: Final = 30.0
OPTIONS: Final = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


async def typed(example: doctest.Example, names: dict[str, Any]) -> str:
    """Type one statement at the prompt of `python -m asyncio`; what the console shows."""
    console = io.StringIO()
    with contextlib.redirect_stdout(console):
        try:
            code = compile(example.source, "<console>", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            awaited = eval(code, names)
            if inspect.isawaitable(awaited):
                await awaited
        except Exception as error:  # noqa: BLE001 -- whatever is raised, the console shows it and goes on
            return "".join(traceback.format_exception_only(error))
    return console.getvalue()


async def test_the_python_tutorial_shows_what_happens() -> None:
    """Each line that is typed at the prompt gives what the page shows."""
    blocks = re.findall(r"```pycon\n(.*?)```", (TUTORIALS / "trade-from-python.md").read_text(), re.DOTALL)
    examples = [example for block in blocks for example in doctest.DocTestParser().get_examples(block)]
    assert len(examples) > 15
    names: dict[str, Any] = {}
    async with Cluster(engines=2) as market:
        for example in examples:
            example.source = example.source.replace("127.0.0.1:50050", market.exchange.address)
            shown = await typed(example, names)
            wanted = example.want if example.exc_msg is None else example.exc_msg
            assert doctest.OutputChecker().check_output(wanted, shown, OPTIONS), (example.source, shown)


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.name)
def test_tests_that_a_page_names_are_there(page: Path) -> None:
    """`tests/file.py` is a file, and `tests/file.py::test_name` a test in it."""
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / file).is_file(), file
        if test:
            assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), (
                file,
                test,
            )


async def test_the_feed_tutorial_shows_what_happens(tmp_path: Path) -> None:
    """The Python follower prints what the page shows while the page's script trades."""
    page = (TUTORIALS / "follow-the-feed.md").read_text()
    shown = re.findall(r"^    (\d+ \d+ (?:None|\(.*\)) .*)$", page, re.MULTILINE)
    output = tmp_path / "output"

    def seen() -> list[str]:
        # A machine with too much to do may hold a heartbeat up, and then the follower joins again.
        lines = [line for line in output.read_text().splitlines() if line != "unsynced"]
        return [line for line, _ in itertools.groupby(lines)]

    async with Cluster(engines=2) as market:
        with output.open("wb") as out:
            follower = subprocess.Popen(  # noqa: ASYNC220 -- its output goes to a file; nothing waits for it here
                [sys.executable, EXAMPLES / "follow_feed.py", market.nats_url, "AAPL", "1"], stdout=out
            )
        try:
            await until(lambda: seen() == shown[:1], DEADLINE_S)
            script = await asyncio.create_subprocess_exec(
                *(EXAMPLES / "trade.sh", market.exchange.address, market.nats_url, "AAPL"),
                env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            assert await script.wait() == 0
            await until(lambda: seen() == shown, DEADLINE_S)
        finally:
            follower.kill()
            follower.wait()
