"""What waits: the commit loop, the gRPC edge, market data, legs and the wiring of an engine process."""
