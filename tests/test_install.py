"""What `make install` does with a Python that cannot be used, and after one that failed."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/sh
test "$1" = -m || exit {too_old}
echo "$2" >> asked
mkdir -p .venv/bin
printf '#!/bin/sh' > .venv/bin/python
chmod +x .venv/bin/python
exit 1
"""
"""Without ensurepip, as Debian's is until python3-venv is installed: its venv leaves a Python and no pip."""


def installed(where: Path, *, too_old: bool) -> subprocess.CompletedProcess[str]:
    """`make install` of nothing but the Makefile, with a Python that is too old or lacks ensurepip."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, where)
    python = where / "python"
    python.write_text(PYTHON.format(too_old=int(too_old)))
    python.chmod(0o755)
    make = ["make", f"PYTHON={python}", "install"]
    return subprocess.run(make, cwd=where, capture_output=True, text=True, check=False, timeout=20)


def test_a_python_that_is_too_old_is_refused_at_once(tmp_path: Path) -> None:
    """In one sentence, and before pip looks for versions of everything that would still suit it."""
    done = installed(tmp_path, too_old=True)
    sentence, makes = done.stderr.splitlines()
    assert sentence.startswith(f"Matchbus needs Python 3.11 or newer, and {tmp_path / 'python'} is not")
    assert "***" in makes
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_a_venv_without_pip_is_made_again(tmp_path: Path, times: int) -> None:
    """Else python3-venv could be installed and `make install` would still fail."""
    for _ in range(times):
        assert installed(tmp_path, too_old=False).returncode
    assert (tmp_path / "asked").read_text().split() == ["venv"] * times
