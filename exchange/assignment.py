"""Which engine becomes a new client's home. The choice is made once and kept for ever."""

from collections.abc import Collection, Mapping


class NoHome(Exception):
    """No engine can become the client's home; the text says why and names the engines there are."""


class UnknownEngine(NoHome):
    """The preferred engine is not one of the exchange's."""


class NoEngineLives(NoHome):
    """There is no engine now that a client could be sent to; later there may be."""


def choose_home(
    preferred: int,
    known: Collection[int],
    live: Collection[int],
    clients_per_engine: Mapping[int, int],
) -> int:
    """Choose a new client's home engine.

    `preferred`, unless 0, whether it lives just now or not: the client knows what it asks for. Else the live
    engine with the fewest clients, of several the lowest number. Raises `UnknownEngine` or `NoEngineLives`.
    """
    if not known:
        raise NoEngineLives("no engine has registered with this exchange yet; start one and try again")
    if preferred:
        if preferred not in known:
            raise UnknownEngine(f"there is no engine {preferred}; there are: {_names(known)}")
        return preferred
    if not live:
        raise NoEngineLives(f"none of the engines {_names(known)} is live; try again when one is")
    return min(live, key=lambda engine: (clients_per_engine.get(engine, 0), engine))


def _names(engines: Collection[int]) -> str:
    return ", ".join(f"E{engine}" for engine in sorted(engines))
