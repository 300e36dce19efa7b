"""The attempts of one operation, when the next may be made, and when no other would help.

The rules, the same for order entry, fills and single calls:

    INVALID_ARGUMENT and such,       raise RequestInvalid / OrderNotFound: again would not help
    and a message above its limit
    DATA_LOSS                        raise DataLost: the venue knows that it cannot tell
    PERMISSION_DENIED                raise AuthenticationFailed
    UNAUTHENTICATED                  register again until there is a new token, then give the engine a second
                                     to learn it
    FAILED_PRECONDITION              wrong engine: register again to learn the right one
    UNAVAILABLE from the engine      ask the exchange where the home engine is now: another process may have
                                     taken over; go there at once, or back off a little and look again;
                                     while the exchange is away too, try the engine's processes in turn
    everything else                  back off with jitter and try again

From the second failure in a row on, an exchange that does not know the home engine is registered with again
instead; so it is after INTERNAL, behind which gRPC may hide a refusal. Registering mends nothing else, and
costs the exchange a slow hash each time.
"""

import asyncio
import random
from typing import TYPE_CHECKING, Final

import grpc

from client.errors import AuthenticationFailed, DataLost, OrderNotFound, RequestInvalid, Unavailable

if TYPE_CHECKING:
    from client.session import Session

TELLING_S: Final = 5.0
"""An attempt that had no answer for so long tells more than how those before it failed."""

TOKEN_GRACE_S: Final = 1.0
"""How long an engine may refuse a token that the exchange has just given out."""

_FIRST_BACKOFF_S: Final = 0.05
_MAX_BACKOFF_S: Final = 1.0
_MAX_SEARCH_S: Final = 0.2
"""Longest pause while a standby may be taking over: that needs about a second, and asking costs little."""

_SEARCHES: Final = 20
"""Failures in a row, some three seconds, after which it is no take-over: very many clients may be waiting."""

_FAILURES_BEFORE_REGISTRATION: Final = 2

_LONG_LIFE_S: Final = 6.0
"""A stream that lived longer was not refused: an engine that cannot check a token says so after 5 s."""

_SHORT_LIFE_S: Final = 1.5
"""A stream that lived longer had reached an engine: a connection is given up after 1 s."""

_MOST_SHORT_LIVES: Final = 3
"""This many streams in a row may live less than a long life, bring nothing, and count as having worked."""

_USELESS_TO_REPEAT: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Retry:
    """The attempts of one operation: `failed` returns when the next may be made, or raises why not.

    The deadline counts from the beginning or the last `progressed`. One `at_exchange` says nothing about the
    home engine when it fails.
    """

    def __init__(self, session: "Session", deadline_s: float, *, at_exchange: bool = False) -> None:
        self._session = session
        self._at_exchange = at_exchange
        self._deadline_s = deadline_s
        self._failures = 0
        self._short_lives = 0
        self._token_renewed_at: float | None = None
        self._last_failure = ""
        self._failed_at = asyncio.get_running_loop().time()
        self._deadline = self._failed_at + deadline_s

    @property
    def remaining_s(self) -> float:
        """What is left until the deadline, in seconds."""
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    def progressed(self) -> None:
        """The venue answered, or nobody waits any more: start from the beginning at the next failure."""
        self._failures = 0
        self._token_renewed_at = None
        self._last_failure = ""
        self._deadline = asyncio.get_running_loop().time() + self._deadline_s

    def late(self) -> Unavailable:
        """What to raise at the deadline."""
        why = f", last failure: {self._last_failure}" if self._last_failure else ""
        return Unavailable(f"no answer within {self._session.deadline_s:g} s{why}")

    def stream_ended(self, lived_s: float, *, brought: bool) -> None:
        """A stream is over: one that had worked leaves the whole deadline for what is tried after it.

        `brought` tells whether it had a message. One that had none may have been refused all the time: how
        long it lived tells most, and the first attempt had nothing before it that could be overrun.
        """
        if brought or lived_s > _LONG_LIFE_S:
            self._short_lives = 0
        elif self._short_lives < _MOST_SHORT_LIVES and (lived_s > _SHORT_LIFE_S or not self._failures):
            self._short_lives += 1
        else:
            return
        self.progressed()

    async def failed(self, error: grpc.aio.AioRpcError | None, generation: int) -> None:
        """Wait out a failed attempt that was made with registration `generation`.

        `error` is None for a stream that ended without saying why. Raises `RequestInvalid`,
        `OrderNotFound`, `AuthenticationFailed`, `DataLost`, or `Unavailable` at the deadline.
        """
        code = grpc.StatusCode.UNAVAILABLE if error is None else error.code()
        if error is not None and (final := self._hopeless(error)) is not None:
            raise final from error
        self._failures += 1
        away = code is grpc.StatusCode.UNAVAILABLE
        now = asyncio.get_running_loop().time()
        lasted_s, self._failed_at = now - self._failed_at, now
        # An attempt that the deadline cuts short does not say why those before it failed.
        cut_short = (
            code is grpc.StatusCode.DEADLINE_EXCEEDED
            and self.remaining_s < _FIRST_BACKOFF_S
            and lasted_s < TELLING_S
        )
        if not (cut_short and self._last_failure):
            self._last_failure = "the stream ended" if error is None else f"{code.name}: {error.details()}"
        try:
            async with asyncio.timeout(self.remaining_s):  # the exchange may be frozen too
                registered = self._session.generation and await self._look_for_cause(code, generation)
        except TimeoutError:
            raise self.late() from error
        moved = self._session.generation != generation and not self._session.is_guessing
        if moved and (self._failures == 1 or (away and not registered)):
            return
        searching = away and self._session.generation and self._failures <= _SEARCHES
        longest_s = _MAX_SEARCH_S if searching else _MAX_BACKOFF_S
        delay_s = min(longest_s, _FIRST_BACKOFF_S * 2 ** min(self._failures - 1, 10))
        delay_s *= random.uniform(0.5, 1.0)  # noqa: S311 -- spreads clients out, no secret
        if delay_s >= self.remaining_s:
            raise self.late() from error
        await asyncio.sleep(delay_s)

    async def _look_for_cause(self, code: grpc.StatusCode, generation: int) -> bool:
        """Ask the exchange for news that may explain this failure; whether we registered."""
        session, often = self._session, self._failures >= _FAILURES_BEFORE_REGISTRATION
        match code:
            case grpc.StatusCode.UNAUTHENTICATED:
                helps = self._token_renewed_at is None
            case grpc.StatusCode.UNAVAILABLE if not self._at_exchange:
                found = await session.find_home(generation)
                helps = often and not found
            case grpc.StatusCode.FAILED_PRECONDITION:
                helps = True
            case grpc.StatusCode.INTERNAL:
                helps = often
            case _:
                helps = False
        if not helps:  # to register again
            return False
        await session.register_again(generation)
        if code is grpc.StatusCode.UNAUTHENTICATED and session.token_generation > generation:
            self._token_renewed_at = asyncio.get_running_loop().time()
        return True

    def _hopeless(self, error: grpc.aio.AioRpcError) -> Exception | None:
        """What to raise for a failure that another attempt cannot mend."""
        code = error.code()
        # The venue's code for a full queue is gRPC's for a message above its limit, which has these words.
        too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in f"{error.details()}"
        if too_large or code in _USELESS_TO_REPEAT:
            return final(error)
        if code is grpc.StatusCode.UNAUTHENTICATED and self._token_renewed_at is not None:
            grace_over = asyncio.get_running_loop().time() - self._token_renewed_at > TOKEN_GRACE_S
            return final(error) if grace_over else None
        return None


def final(error: grpc.aio.AioRpcError) -> Exception:
    """The exception that says what this failure means to a user."""
    code, text = error.code(), error.details() or error.code().name
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return AuthenticationFailed(text)
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return AuthenticationFailed(f"{text}: use that secret, or another client id")
    if code is grpc.StatusCode.NOT_FOUND:
        return OrderNotFound(text)
    if code is grpc.StatusCode.DATA_LOSS:
        return DataLost(text)
    return RequestInvalid(text)
