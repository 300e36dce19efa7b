"""What waits at the exchange: gRPC, the key-value buckets, the feeds and the wiring of its process."""
