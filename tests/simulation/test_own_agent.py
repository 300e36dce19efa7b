"""The example of an agent of one's own runs as its first line says."""

import asyncio
import sys
from pathlib import Path

from simulation.cluster import Cluster

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "write_an_agent.py"
DEADLINE_S = 60.0


async def test_write_an_agent(tmp_path: Path) -> None:
    """Its agent trades among the usual ones, and every check holds."""
    async with Cluster(engines=2, data_dir=tmp_path) as cluster:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, EXAMPLE, cluster.exchange.address), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(DEADLINE_S):
            output, _ = await process.communicate()
    assert process.returncode == 0
    *traders, verdict = output.decode().splitlines()
    assert [line.split()[0] for line in traders] == [
        *("random-1", "maker-2", "random-3", "momentum-4", "random-5", "improver-1")
    ]
    assert int(traders[-1].split()[1]) > 0
    assert verdict == "All checks hold."
