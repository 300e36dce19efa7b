"""The committed page is what its sources make."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent.parent.parent / "exchange" / "dashboard"
PAGE = SOURCES / "page"


def test_the_page_is_built_from_its_sources(tmp_path: Path) -> None:
    """Building again gives the same files, byte for byte."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node: the committed page was not compared with its sources")
    if not (SOURCES / "node_modules").is_dir():
        pytest.skip("the page was not compared with its sources: `npm ci` in exchange/dashboard was not run")
    subprocess.run([node, "build.mjs", tmp_path], cwd=SOURCES, check=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in PAGE.iterdir())
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (PAGE / file.name).read_bytes(), f"{file.name}: run `make dashboard`"


def test_the_page_takes_nothing_from_elsewhere() -> None:
    """The page and its style name no other host, and every library's licence is beside them."""
    for name in ("index.html", "dashboard.css"):
        text = (PAGE / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text, name
    licences = (PAGE / "LICENSES.txt").read_text()
    for library in ("@nats-io/nats-core", "@nats-io/nkeys", "@nats-io/nuid", "tweetnacl", "uplot"):
        assert f"{library} " in licences


def test_the_lock_file_names_no_registry() -> None:
    """Whoever builds takes the packages from the registry of their own."""
    assert "resolved" not in (SOURCES / "package-lock.json").read_text()
