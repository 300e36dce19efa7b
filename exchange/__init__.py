"""Clients, their home engines and their positions. Only `exchange.runtime` waits."""
