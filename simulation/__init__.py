"""Everything around a running market: the launcher, simulated clients, checks of a run, historical replay."""
