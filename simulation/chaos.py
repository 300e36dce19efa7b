"""Faults strike a real market under load; at the end a witness says whether anything was lost.

`faults` decides what strikes when, `injector` strikes, `load` trades, `proxy` is the network, `evidence`
reads what is left, `witness` judges, `chaos_report` tells; here they are put together: trading under fire,
waiting until all is quiet.
"""

import asyncio
import contextlib
import gc
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from bus.connection import Patience
from bus.runner import raise_file_limit
from client import Client, EngineRole, MatchbusError, OrderStatus
from client.cli.output import print_sheets
from client.cli.sheets import counted
from simulation import report
from simulation.checks import Check, uncrossed
from simulation.cluster import Cluster
from simulation.cluster_errors import ClusterError
from simulation.cluster_settings import Storage
from simulation.evidence import QUIET_DEADLINE_S, best_prices, read_evidence
from simulation.faults import KILLS, NATS, Fault, Kind, Pace, schedule
from simulation.injector import Injector, Strike
from simulation.load import Acknowledgements, Loader, Middles
from simulation.proxy import Proxy
from simulation.witness import ClientLog, Evidence, Totals, all_answered, judge, totals

CLIENT_DEADLINE_S: Final = 20.0
PROGRESS_S: Final = 5.0
UP_DEADLINE_S: Final = 60.0
"""How long everything may take to serve again once all is healed."""

ANSWERS_DEADLINE_S: Final = 60.0
"""How long the last commands may wait for their answers from then on."""

OUTAGE_LOOK_S: Final = 5.0
"""A silence that begins this long after a fault was over, or after the next fault, is not its doing."""

_MIDDLE_STEP_S: Final = 0.05
_POLL_S: Final = 0.05
_GC_THRESHOLDS: Final = (100_000, 50, 1_000)
"""Nothing that is written down is garbage, and looking through it would stop the clients."""


@dataclass(frozen=True, slots=True)
class ChaosSettings:
    """What to run."""

    minutes: float = 2.0
    seed: int = 1
    engines: int = 2
    standbys: int = 0
    nats_nodes: int = 1
    snapshot_every: int = 50_000
    clients: int = 3
    """At home on each engine."""
    rate: float = 2_000.0
    """Commands a second, of all clients together."""
    pace: Pace = field(default_factory=Pace)
    symbols: int = 4
    data: Path | None = None


@dataclass(slots=True)
class ChaosOutcome:
    """What a run came to."""

    settings: ChaosSettings
    trading_s: float
    strikes: list[Strike]
    outages_s: dict[Kind, list[float]]
    totals: Totals
    unavailable: int
    held_back: int
    ended_by_themselves: int
    settled_s: float
    uncrossed_s: float
    checks: list[Check]

    @property
    def holds(self) -> bool:
        """Whether nothing was violated."""
        return all(check.holds for check in self.checks)


async def chaos(settings: ChaosSettings, console: Console) -> ChaosOutcome:
    """Run it all. Raises `ClusterError` when the market cannot be started."""
    if settings.data is not None and settings.data.exists() and any(settings.data.iterdir()):
        raise ClusterError(f"{settings.data} is not empty: the witness must know all that went in")
    raise_file_limit()
    faults = schedule(settings.seed, settings.minutes * 60, settings.engines, settings.pace)
    much = f"{counted(len(faults), 'fault')} in {counted(settings.minutes, 'minute')}"
    console.print(f"seed {settings.seed}: {much}")
    async with contextlib.AsyncExitStack() as stack:
        kinds = ("engine", "standby") if settings.standbys else ("engine",)
        engines = [f"{kind} {number}" for kind in kinds for number in range(1, settings.engines + 1)]
        proxies = {
            name: [await stack.enter_async_context(Proxy()) for _ in range(settings.nats_nodes)]
            for name in ("exchange", *engines)
        }
        cluster = await stack.enter_async_context(_cluster(settings, proxies))
        print_sheets(console, report.cluster_sheet(cluster))
        loaders = await _enter(settings, cluster, stack)
        injector = Injector(cluster, proxies, console.print)
        stack.callback(injector.heal)  # whatever ends the run, the market ends over links that work
        run = ChaosRun(settings, cluster, loaders, injector, console)
        await run.trade(faults)
        up = await run.up()
        evidence, readable = await read_evidence(cluster.nats_url, loaders, settings.engines, run.all_up_ns)
        outcome = run.outcome(evidence, [all_answered(evidence.clients), up, readable])
    if not readable.holds:
        return outcome
    # Judging keeps this process, and so the proxies, busy for a while: not while the market still runs.
    console.print("the market is stopped; the witness reads")
    outcome.checks[:0] = judge(evidence)
    return outcome


def _cluster(settings: ChaosSettings, proxies: dict[str, list[Proxy]]) -> Cluster:
    def through_proxy(name: str, urls: str) -> str:
        for proxy, url in zip(proxies[name], urls.split(","), strict=True):
            proxy.upstream_port = int(url.rpartition(":")[2])
        return ",".join(proxy.url for proxy in proxies[name])

    return Cluster(
        engines=settings.engines,
        standbys=settings.standbys,
        data_dir=settings.data,
        storage=Storage(
            durability="journal", nats_nodes=settings.nats_nodes, snapshot_every=settings.snapshot_every
        ),
        nats_url_of=through_proxy,
    )


async def _enter(settings: ChaosSettings, cluster: Cluster, stack: contextlib.AsyncExitStack) -> list[Loader]:
    """Register the clients, equally many at home on each engine."""
    acks = Acknowledgements()
    loaders: list[Loader] = []
    middles: Middles | None = None
    for number in range(settings.clients * settings.engines):
        name = f"chaos-{number + 1}"
        client = await stack.enter_async_context(
            Client.connect(
                cluster.exchange.address,
                client_id=name,
                password=cluster.password,
                secret=f"secret of {name}",
                preferred_engine=number % settings.engines + 1,
                deadline_s=CLIENT_DEADLINE_S,
            )
        )
        middles = middles or Middles(sorted(client.instruments)[: settings.symbols], settings.seed)
        loaders.append(Loader(client, ClientLog(name, client.engine), middles, acks, settings.seed))
    return loaders


class ChaosRun:
    """One run from the first order to the verdict."""

    def __init__(
        self,
        settings: ChaosSettings,
        cluster: Cluster,
        loaders: list[Loader],
        injector: Injector,
        console: Console,
    ) -> None:
        self.all_up_ns = 0
        """UTC: from then on every process served."""
        self._settings = settings
        self._cluster = cluster
        self._loaders = loaders
        self._injector = injector
        self._console = console
        self._acks = loaders[0].acks
        self._middles = loaders[0].middles
        self._stop = asyncio.Event()
        self._trading_s = self._settled_s = self._uncrossed_s = 0.0

    async def trade(self, faults: list[Fault]) -> None:
        """Trade under fire, then in peace, until every command has its answer and no leg is out."""
        started = time.monotonic()
        thresholds = gc.get_threshold()
        gc.set_threshold(*_GC_THRESHOLDS)
        try:
            async with asyncio.TaskGroup() as group:
                following = [loader.follow() for loader in self._loaders]
                beside = (*following, self._walk(), self._progress())
                background = [group.create_task(part) for part in beside]
                rate = self._settings.rate / len(self._loaders)
                trading = [group.create_task(one.trade(rate, self._stop)) for one in self._loaders]
                injecting = group.create_task(self._injector.run(faults))
                await asyncio.sleep(self._settings.minutes * 60)
                # No new command first, then no more faults: what heals must do so with nobody pushing.
                self._stop.set()
                injecting.cancel()
                self._injector.heal()
                self._console.print("no new commands, and all faults are over")
                await self._until_up()
                self.all_up_ns = time.time_ns()
                await self._until_answered(trading)
                self._trading_s = time.monotonic() - started
                await self._until_settled()
                self._settled_s = (time.time_ns() - self.all_up_ns) / 1e9
                await self._until_uncrossed()
                self._uncrossed_s = (time.time_ns() - self.all_up_ns) / 1e9
                await self._until_followed()
                for task in background:
                    task.cancel()
        finally:
            gc.set_threshold(*thresholds)

    async def up(self) -> Check:
        """Whether everything came back; a process that listens may hang all the same."""
        check = Check("every process serves at the end", checked=len(self._cluster.members))
        missing = await self._until(self._not_stood_by, QUIET_DEADLINE_S, "a standby follows each engine")
        check.violations = [fault for fault in (await self._until_up(), missing) if fault]
        return check

    def outcome(self, evidence: Evidence, checks: list[Check]) -> ChaosOutcome:
        """What the run came to; of the checks those that need no witness."""
        strikes = self._injector.strikes
        killed = sum(
            one.fault.kind in KILLS and one.fault.kind is not Kind.KILL_NATS
            for one in strikes
            if not one.missed
        )
        return ChaosOutcome(
            settings=self._settings,
            trading_s=self._trading_s,
            strikes=strikes,
            outages_s=self._outages(),
            totals=totals(evidence),
            unavailable=sum(loader.unavailable for loader in self._loaders),
            held_back=sum(loader.held_back for loader in self._loaders),
            ended_by_themselves=sum(member.restarts for member in self._cluster.members) - killed,
            settled_s=self._settled_s,
            uncrossed_s=self._uncrossed_s,
            checks=checks,
        )

    async def _walk(self) -> None:
        while True:
            await asyncio.sleep(_MIDDLE_STEP_S)
            self._middles.step()

    async def _progress(self) -> None:
        """A line each few seconds."""
        answered = 0
        started = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_S)
            now = sum(map(len, self._acks.times_ns.values()))
            waiting = sum(loader.outstanding for loader in self._loaders)
            fills = sum(len(loader.log.followed) for loader in self._loaders)
            self._console.print(
                f"{time.monotonic() - started:7.2f} s  {(now - answered) / PROGRESS_S:.0f} answers a second, "
                f"{now} in all, {waiting} waiting, {fills} fills"
            )
            answered = now

    async def _until_up(self) -> str:
        """Every process serves again; which does not, else."""
        return await self._until(self._down, UP_DEADLINE_S, "every process serves")

    async def _down(self) -> str:
        """Which process does not say, asked now, that it serves."""
        members = self._cluster.members
        answers = await asyncio.gather(*(member.serves() for member in members))
        names = [server.name for server in self._cluster.nats if not server.running]
        names += [member.name for member, serves in zip(members, answers, strict=True) if not serves]
        return ", ".join(f"{name} does not serve" for name in names)

    async def _not_stood_by(self) -> str:
        if not self._settings.standbys:
            return ""
        processes = await self._loaders[0].client.venue.engines()
        following = {
            process.engine
            for process in processes
            if process.role is EngineRole.STANDBY and not process.lag_batches
        }
        missing = sorted(set(range(1, self._settings.engines + 1)) - following)
        return ", ".join(f"none follows E{engine}" for engine in missing)

    async def _until_answered(self, trading: Collection[asyncio.Task[None]]) -> None:
        """Every command has its answer; those that have none by the deadline are given up.

        A client would give them again for ever, and a run without end has no verdict.
        """
        with contextlib.suppress(TimeoutError):
            async with Patience(ANSWERS_DEADLINE_S):
                await asyncio.wait(trading)
        waiting = [task for task in trading if not task.done()]
        for task in waiting:
            task.cancel()
        self._console.print(
            f"[red]not within {ANSWERS_DEADLINE_S:g} s: every command is answered[/]"
            if waiting
            else "all commands are answered"
        )

    async def _until_settled(self) -> None:
        """No order waits for a leg."""

        async def leg_is_out() -> str:
            for loader in self._loaders:
                for order in await loader.client.open_orders():
                    if order.status is OrderStatus.PENDING:
                        return f"order {order.order_id} does"
            return ""

        await self._until(leg_is_out, QUIET_DEADLINE_S, "no order waits for a leg")

    async def _until(
        self, why_not: Callable[[], Coroutine[None, None, str]], deadline_s: float, what: str
    ) -> str:
        """Return once nothing speaks against it, or at the deadline; what does so then."""
        why = "nobody answers"
        try:
            async with Patience(deadline_s):
                while why := await why_not():  # noqa: ASYNC110 -- other processes set no event
                    await asyncio.sleep(_POLL_S)
        except (TimeoutError, MatchbusError) as error:
            why = str(error) or why
            self._console.print(f"[red]not within {deadline_s:g} s: {what}: {why}[/]")
        return why

    async def _until_uncrossed(self) -> None:
        """No book that the exchange shows over all engines is locked or crossed."""

        async def crossed() -> str:
            return "; ".join(uncrossed(await best_prices(self._loaders)).violations)

        await self._until(crossed, QUIET_DEADLINE_S, "no consolidated book is crossed")

    async def _until_followed(self) -> None:
        """Every client that follows its fills has seen the last one, and the exchange has counted it."""

        async def unseen() -> str:
            for loader in self._loaders:
                positions = await loader.close_books()
                told = {symbol: held.quantity for symbol, held in positions.items() if held.quantity}
                if told != loader.held():
                    return f"the exchange says that {loader.log.name} holds {told}"
                if loader.log.followed != loader.log.fills:
                    return f"{loader.log.name} followed {len(loader.log.followed)} fills"
            return ""

        await self._until(unseen, QUIET_DEADLINE_S, "clients and exchange have seen the last fill")

    def _outages(self) -> dict[Kind, list[float]]:
        """By kind of fault, how long clients of its target had no answer, where they had some before."""
        outages: defaultdict[Kind, list[float]] = defaultdict(list)
        engines = range(1, self._settings.engines + 1)
        for strike in self._injector.strikes:
            if strike.missed:
                continue
            struck = (strike.fault.target,) if strike.fault.target > 0 else engines
            end_ns = min(strike.over_ns + round(OUTAGE_LOOK_S * 1e9), self._next_strike_ns(strike, struck))
            silences = [self._acks.longest_silence_s(number, strike.at_ns, end_ns) for number in struck]
            known = [silence for silence in silences if silence is not None]
            if len(known) == len(silences):
                outages[strike.fault.kind].append(max(known))
        return dict(outages)

    def _next_strike_ns(self, strike: Strike, struck: Sequence[int]) -> int:
        """When the next fault struck that could silence the same clients."""
        later = (
            other.at_ns
            for other in self._injector.strikes
            if other.at_ns > strike.at_ns and other.fault.target in (*struck, NATS)
        )
        return min(later, default=strike.over_ns + 10**12)
