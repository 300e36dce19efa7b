"""The matching engine: pure, synchronous and deterministic. Only `engine.runtime` waits."""
