"""Whatever happens to the files of a journal, no engine starts on less than it had acknowledged."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from engine.runtime.high_water import FILE_NAME
from tests.system.damage import FAILURES, Outcome, Prepared, campaign, judge, prepare, stream_files
from tests.system.venue import scaled, show


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    """The undamaged stores by name, which nobody touches."""
    return {store.name: store for store in await prepare(tmp_path_factory.mktemp("stores"))}


@pytest.fixture
def copied(prepared: dict[str, Prepared], tmp_path: Path) -> Callable[[str], Prepared]:
    """A store of that name, as a copy that the test may damage."""

    def copy(name: str) -> Prepared:
        kept = prepared[name]
        return replace(kept, directory=shutil.copytree(kept.directory, tmp_path / kept.directory.name))

    return copy


async def test_no_damage_goes_unnoticed(tmp_path: Path, prepared: dict[str, Prepared]) -> None:
    """Flipped bits, cut and torn files are found or change nothing; both happen, so the damage is real."""
    cases = await campaign(
        tmp_path,
        [*prepared.values()],
        flips=scaled(12, 300),
        truncations=scaled(6, 100),
        tails=scaled(4, 50),
        seed=1,
    )
    show("\n".join(f"{case.outcome}: {case.what}" for case in cases))
    assert [case for case in cases if case.outcome in FAILURES] == []
    outcomes = {case.outcome for case in cases}
    assert {Outcome.HARMLESS, Outcome.CHAIN, Outcome.MARK} <= outcomes


async def test_an_undamaged_store_is_harmless(
    prepared: dict[str, Prepared], copied: Callable[[str], Prepared]
) -> None:
    """Without damage every kind of store starts, so a finding means something."""
    for name in prepared:
        store = copied(name)
        assert await judge(store.directory, store.records) == (Outcome.HARMLESS, "")


@pytest.mark.parametrize("is_marked", [True, False])
async def test_only_the_mark_sees_a_tail_that_is_gone(
    copied: Callable[[str], Prepared], is_marked: bool
) -> None:
    """Of a killed server's last block the end is cut off: with the mark that is found, without it SILENT."""
    store = copied("one block, killed")
    (block,) = [path for path in stream_files(store.directory) if path.suffix == ".blk"]
    block.write_bytes(block.read_bytes()[:-5_000])
    if not is_marked:
        (store.directory / "state" / FILE_NAME).unlink()
    outcome, why = await judge(store.directory, store.records)
    assert outcome is (Outcome.MARK if is_marked else Outcome.SILENT), why


async def test_a_tail_that_the_server_still_counts_is_found(copied: Callable[[str], Prepared]) -> None:
    """After a clean stop the server's index promises records that were cut off: the replay does not hang.

    Without the index, and the block that a start made, the mark tells what is gone (docs/reliability.md).
    """
    store = copied("one block, stopped")
    (block,) = [path for path in stream_files(store.directory) if path.suffix == ".blk"]
    block.write_bytes(block.read_bytes()[:-5_000])
    outcome, why = await judge(store.directory, store.records)
    assert outcome is Outcome.CHAIN
    assert "from here on its records are gone" in why
    for path in stream_files(store.directory):
        if path.name == "index.db" or (path.suffix == ".blk" and path.stat().st_size == 30):
            path.unlink()
    outcome, why = await judge(store.directory, store.records)
    assert outcome is Outcome.MARK, why


async def test_a_store_that_is_gone_is_found(copied: Callable[[str], Prepared]) -> None:
    """An empty NATS store gives a new, empty journal, and the mark refuses it."""
    store = copied("one block, stopped")
    shutil.rmtree(store.directory / "nats")
    outcome, why = await judge(store.directory, store.records)
    assert outcome is Outcome.MARK
    assert "it ends at batch 0" in why
