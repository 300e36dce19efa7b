"""Logging to stderr that never waits: who looks after a market must not stop because nobody reads there."""

import logging

from bus.logs import LogForm, StderrHandler, formatter


def log_to_stderr(form: LogForm = "text") -> None:
    """Show warnings and what is worse."""
    terminal = StderrHandler()
    terminal.setFormatter(formatter(form))
    logging.basicConfig(level=logging.WARNING, handlers=[terminal])
