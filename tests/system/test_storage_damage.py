"""Whatever happens to the files of a journal, no engine starts on less than it had acknowledged."""

import shutil
from pathlib import Path

import pytest

from engine.runtime.high_water import FILE_NAME
from tests.system.damage import FAILURES, Outcome, Prepared, campaign, judge, prepare, stream_files
from tests.system.venue import scaled, show


async def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    """Flipped bits, cut and torn files are found or change nothing; both happen, so the damage is real."""
    cases = await campaign(
        tmp_path, flips=scaled(12, 300), truncations=scaled(6, 100), tails=scaled(4, 50), seed=1
    )
    show("\n".join(f"{case.outcome}: {case.what}" for case in cases))
    assert [case for case in cases if case.outcome in FAILURES] == []
    outcomes = {case.outcome for case in cases}
    assert {Outcome.HARMLESS, Outcome.CHAIN, Outcome.MARK} <= outcomes


async def stores(directory: Path) -> dict[str, Prepared]:
    """The undamaged stores by name."""
    return {store.name: store for store in await prepare(directory)}


async def test_an_undamaged_store_is_harmless(tmp_path: Path) -> None:
    """Without damage every kind of store starts, so a finding means something."""
    for store in (await stores(tmp_path)).values():
        assert await judge(store.directory, store.records) == (Outcome.HARMLESS, "")


@pytest.mark.parametrize("is_marked", [True, False])
async def test_only_the_mark_sees_a_tail_that_is_gone(tmp_path: Path, is_marked: bool) -> None:
    """Of a killed server's last block the end is cut off: with the mark that is found, without it SILENT."""
    store = (await stores(tmp_path))["one block, killed"]
    (block,) = [path for path in stream_files(store.directory) if path.suffix == ".blk"]
    block.write_bytes(block.read_bytes()[:-5_000])
    if not is_marked:
        (store.directory / "state" / FILE_NAME).unlink()
    outcome, why = await judge(store.directory, store.records)
    assert outcome is (Outcome.MARK if is_marked else Outcome.SILENT), why


async def test_a_tail_that_the_index_still_counts_is_found(tmp_path: Path) -> None:
    """After a clean stop the server's index promises records that were cut off: the replay does not hang."""
    store = (await stores(tmp_path))["one block, stopped"]
    (block,) = [path for path in stream_files(store.directory) if path.suffix == ".blk"]
    block.write_bytes(block.read_bytes()[:-5_000])
    outcome, why = await judge(store.directory, store.records)
    assert outcome is Outcome.CHAIN
    assert "from here on its records are gone" in why


async def test_a_store_that_is_gone_is_found(tmp_path: Path) -> None:
    """An empty NATS store gives a new, empty journal, and the mark refuses it."""
    store = (await stores(tmp_path))["one block, stopped"]
    shutil.rmtree(store.directory / "nats")
    outcome, why = await judge(store.directory, store.records)
    assert outcome is Outcome.MARK
    assert "it ends at batch 0" in why
