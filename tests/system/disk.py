"""A small file system that a test may fill."""

import os
from dataclasses import dataclass
from pathlib import Path

SPARE_BYTES = 100_000
"""What is left when it is full: less than whoever writes needs next."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Mounted at `folder`, with nothing else on it."""

    folder: Path

    def fill(self) -> Path:
        """Leave no room; returns the file to remove for there to be some."""
        space = os.statvfs(self.folder)
        filler = self.folder / "filler"
        filler.write_bytes(bytes(space.f_bavail * space.f_frsize - SPARE_BYTES))
        return filler
