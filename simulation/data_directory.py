"""What a market's data directory was made with: a later start must not lose sight of what it holds."""

from pathlib import Path
from typing import Final, Literal

from bus import subjects
from engine.runtime.high_water import FILE_NAME as MARK_FILE
from simulation.cluster_errors import DurabilityDiffers, EnginesMissing, NodesDiffer

Durability = Literal["journal", "none"]

ENGINES_FILE: Final = "engines"


def keep_durability(data_dir: Path, wanted: Durability | None) -> Durability:
    """The durability of a data directory, kept in it from its first use on.

    `wanted` None means as before, "journal" at first. Raises `DurabilityDiffers`.
    """
    kept_in = data_dir / "durability"
    if not kept_in.exists():
        durability: Durability = wanted or "journal"
        kept_in.write_text(f"{durability}\n")
        return durability
    kept = kept_in.read_text().strip()
    durability = "none" if kept == "none" else "journal"
    if wanted is not None and wanted != durability:
        raise DurabilityDiffers(f"{data_dir} was made with --durability {durability}, not {wanted}")
    return durability


def check_nodes(data_dir: Path, wanted: int) -> None:
    """Raise `NodesDiffer` when a data directory holds the stores of another number of NATS servers.

    Of three one may be gone: the two others fill it again. Two empty ones might outvote the third.
    """
    stores = len(list(data_dir.glob("nats_n[123]")))
    kept = 3 if stores else int((data_dir / "nats").exists()) or wanted
    if kept != wanted:
        raise NodesDiffer(f"{data_dir} was made with --nats-nodes {kept}, not {wanted}")
    if stores == 1:
        raise NodesDiffer(
            f"two of the three NATS stores in {data_dir} are gone: put back a copy of all three"
        )


def check_engines(data_dir: Path, wanted: int) -> None:
    """Raise `EnginesMissing` when a data directory was used with more: they have clients and orders."""
    marks = data_dir.glob(f"engine_*/{MARK_FILE}")
    kept = max((subjects.number_of(mark.parent.name.removeprefix("engine_")) for mark in marks), default=0)
    kept_in = data_dir / ENGINES_FILE
    if kept_in.exists():  # engines without a journal leave no marks
        kept = max(kept, subjects.number_of(kept_in.read_text().strip()))
    if kept > wanted:
        raise EnginesMissing(
            f"{data_dir} was used with {kept} engines; with --engines {wanted} nobody could reach the clients"
            f" and orders of engine {wanted + 1}{' and above' if kept > wanted + 1 else ''}:"
            f" start with --engines {kept}"
        )


def keep_engines(data_dir: Path, engines: int) -> None:
    """Note in a data directory how many engines have served."""
    (data_dir / ENGINES_FILE).write_text(f"{engines}\n")
