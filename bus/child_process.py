"""A child process: how it is started, asked to end, and ended."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_KILLED_S: Final = 10.0
"""How long a killed child may take to end; one that waits for a dead disk cannot."""

_log: Final = logging.getLogger(__name__)


class ChildProcess:
    """A child that writes what it prints to the end of `log_file`, and may be started again once it ended.

    Asked to end, it is killed when it has not after `grace_s`.
    """

    def __init__(self, log_file: Path, grace_s: float) -> None:
        self._log_file = log_file
        self._grace_s = grace_s
        self._log_begins = 0  # at which byte of the log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process id of the running child."""
        return self._started.pid

    @property
    def running(self) -> bool:
        """Whether the child runs."""
        return self._process is not None and self._process.returncode is None

    async def launch(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        open_files: Sequence[int] = (),
    ) -> None:
        """Start the child without waiting for it; its environment and directory are ours unless given.

        Of our open files it gets `open_files`, by their descriptors.
        """
        assert not self.running, "the child runs already"
        with self._log_file.open("ab") as log:
            self._log_begins = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *command,
                cwd=directory,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=open_files,
                start_new_session=True,  # Ctrl-C is for us, who stop all in order
            )

    async def wait(self) -> int:
        """Wait until the child ends; its exit code, negative for a signal."""
        return await self._started.wait()

    async def stop(self) -> None:
        """Ask the child to end, kill it when it has not after the grace. Nothing when it has ended."""
        if not self.running:
            return
        with contextlib.suppress(ProcessLookupError):
            self._started.terminate()
        try:
            async with asyncio.timeout(self._grace_s):
                await self.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End the child with SIGKILL, as a crash would. One that even so does not end is left behind."""
        with contextlib.suppress(ProcessLookupError):
            self._started.kill()
        try:
            async with asyncio.timeout(_KILLED_S):
                await self.wait()
        except TimeoutError:
            _log.warning("process %d does not end, though it was killed, and is left behind", self.pid)

    def log_tail(self, lines: int) -> list[str]:
        """The last lines that the child has printed since its start. Raises OSError."""
        with self._log_file.open("rb") as log:
            log.seek(self._log_begins)
            return log.read().decode(errors="replace").splitlines()[-lines:]

    @property
    def _started(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "the child was never started"
        return self._process
