"""A whole market in one process and in virtual time: the same seed gives the same market, order by order.

The engines' own state machines, commit loops, feeds and legs run here, and the exchange's view of them. In
the places of NATS, gRPC, disks and clocks stand a network, calls and appends whose delays are drawn from the
seed.

`clock` is the event loop and the time; `delays` says how long everything takes; `network` carries messages;
`engine` and `venue` put the parts together.
"""
