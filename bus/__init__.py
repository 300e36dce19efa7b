"""NATS and what goes over it, and what every process of the venue shares.

Over NATS: subjects, messages, the journal, leases, buckets, books built from feeds. Shared: start and end,
logs, metrics. Only these are pure: `addresses`, `consolidated`, `messages`, `peer`, `records`, `replica`,
`subjects`, `tokens`, `view_messages`.
"""
