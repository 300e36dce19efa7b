"""Follow all executions with nats-py and msgspec: drop_copy.py nats://127.0.0.1:4222 [after].

A line is the place of a message in the stream EXECUTIONS, the engine that reports, and one report, its fields
as in docs/reference.md. The last place is all a program has to keep to go on where it stopped.
"""

import asyncio
import contextlib
import json
import sys

import msgspec
import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

PATIENCE_S = 5.0
MESSAGES = 16  # of up to 256 kB; nats-server cuts off a reader for whom more than 16 MB wait


async def main(url: str, after: int) -> None:
    """Print what is stored behind `after`, then what comes, until interrupted."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            nc = await nats.connect(url, error_cb=ignore, max_reconnect_attempts=-1)
    except TimeoutError:
        sys.exit(f"no NATS answers at {url}")
    js, reader = nc.jetstream(), None
    while True:
        config = ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            inactive_threshold=60,
        )
        try:
            reader = reader or await js.pull_subscribe("execution.*", stream="EXECUTIONS", config=config)
            messages = await reader.fetch(MESSAGES, timeout=PATIENCE_S)
        except TimeoutError:  # nats-py's own or, when the server was slow to say so, asyncio's
            continue  # nobody traded
        except nats.js.errors.ServiceUnavailableError:
            reader, messages = None, []  # away for a minute it is forgotten, but nothing that is stored
            await asyncio.sleep(1)
        for message in messages:
            after = message.metadata.sequence.stream
            # Take fields from the front: later versions may add some.
            _, engine, _, _, _, _, reports = msgspec.msgpack.decode(message.data)[:7]
            for report in reports:
                print(after, f"E{engine}", json.dumps(report), flush=True)


async def ignore(_: Exception) -> None:
    """A lost connection comes back, and the stream has kept what came meanwhile."""


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
