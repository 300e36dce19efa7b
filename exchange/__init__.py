"""Clients, their home engines and positions; what is shown of the market. Only `exchange.runtime` waits."""
