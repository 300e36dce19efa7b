"""What holds for every example; what each does is tried where the market it needs is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = [path for path in sorted((ROOT / "examples").iterdir()) if path.suffix in {".py", ".mjs", ".sh"}]
MOST_LINES = 59
LONGEST_LINE = 110


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_read_in_one_look(example: Path) -> None:
    """No example has sixty lines or more, nor a line that has to be scrolled for."""
    lines = example.read_text().splitlines()
    assert len(lines) <= MOST_LINES
    assert max(len(re.sub(r"  # (noqa|type): .*", "", line)) for line in lines) <= LONGEST_LINE


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_run(example: Path) -> None:
    """Some test names it, and so does a page."""
    for folder, pattern in (("tests", "test_*.py"), ("docs", "*.md")):
        assert any(example.name in path.read_text() for path in (ROOT / folder).rglob(pattern)), folder


def test_the_lock_file_names_no_registry() -> None:
    """Whoever runs the Node example takes its packages from a registry of their own."""
    assert "resolved" not in (ROOT / "examples" / "package-lock.json").read_text()
