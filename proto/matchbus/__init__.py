"""The gRPC contract of Matchbus, and what all its servers and all its commands do alike.

How they are served, secured, traced and ended (`edge`, `tls`, `tracing`, `program`) is here because the
client, which has its part in it, imports neither `engine` nor `exchange`, and of `bus`, but for the commands
that read the feed, only what is pure.
"""
