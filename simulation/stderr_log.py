"""Logging to stderr that never waits: who looks after a market must not stop because nobody reads there."""

import logging

from bus.logs import StderrHandler


def log_to_stderr() -> None:
    """Show warnings and what is worse."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, handlers=[StderrHandler()])
