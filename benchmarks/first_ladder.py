"""How long a newcomer waits: from `git clone` to a ladder that moves in a browser, the install included.

    python benchmarks/first_ladder.py

Clones this checkout's commits into a new directory, runs `make demo` there and opens the address that it
prints in Chromium. Needs Playwright here (`make browser`), and Chromium on the PATH or named in CHROMIUM;
pip's own cache is used as it is.
"""

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
CHROMIUM: Final = os.environ.get("CHROMIUM") or shutil.which("chromium")
STATES: Final = 3
"""Different books that must have been on the page."""

DEADLINE_S: Final = 180.0
_ADDRESS: Final = re.compile(r"dashboard\s*│\s*(http://\S+)")


def printed_address(demo: "subprocess.Popen[str]") -> str:
    """Where the demo says that its page is."""
    assert demo.stdout is not None
    for line in demo.stdout:
        if found := _ADDRESS.search(line):
            return found[1]
    raise SystemExit("the demo printed no address of a page")


def until_it_moves(address: str, began: float) -> None:
    """Return when the ladder has shown several books."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 -- no part of `make install`

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        seen: set[str] = set()
        while len(seen) < STATES:
            if time.monotonic() - began > DEADLINE_S:
                raise SystemExit(f"the ladder did not move within {DEADLINE_S:g} s")
            seen.add(page.inner_text("#ladder tbody"))
            page.wait_for_timeout(50)
        browser.close()


def main() -> None:
    """Measure once and print both times."""
    as_written = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=as_written).parse_args()
    if importlib.util.find_spec("playwright") is None:
        sys.exit("first_ladder.py needs Playwright: `make browser` installs it")
    if CHROMIUM is None:
        sys.exit("first_ladder.py needs Chromium: put `chromium` on the PATH, or name it in CHROMIUM")
    with tempfile.TemporaryDirectory() as directory:
        began = time.monotonic()
        clone = Path(directory) / "matchbus"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        demo = subprocess.Popen(
            ["make", "demo", f"ARGS=--headless --duration {DEADLINE_S:g}"],
            cwd=clone,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            address = printed_address(demo)
            print(f"the page's address is printed after {time.monotonic() - began:.1f} s")
            until_it_moves(address, began)
            print(f"the ladder moves after {time.monotonic() - began:.1f} s")
        finally:
            os.killpg(demo.pid, signal.SIGINT)
            demo.wait(20)


if __name__ == "__main__":
    main()
