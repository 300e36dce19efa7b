"""Why a market on this machine cannot be started, or has stopped working.

ClusterError
├── PortTaken            a port that was asked for is in use
├── HostRefused          the host to listen on is not an address of this machine
├── TooManyFiles         this process may not open as many files as the market has ports
├── DurabilityDiffers    the directory was made with another durability
├── NodesDiffer          the directory was made with another number of NATS servers
├── EnginesMissing       the directory was used with an engine that was not asked for
├── NoJournal            standbys without a journal
├── ClientsDiffer        TLS is for the market and not for its clients, or the other way round
└── ProcessFailed        a process ended or was not ready in time; holds the last lines of its log
    └── OutOfReach       it runs, and TLS keeps this process from asking whether it is ready
"""


class ClusterError(Exception):
    """The market cannot be started or has stopped working."""


class PortTaken(ClusterError):
    """A port that was asked for is in use by another process."""


class HostRefused(ClusterError):
    """The host to listen on is not an address of this machine."""


class TooManyFiles(ClusterError):
    """This process may not open as many files as the market has ports."""


class DurabilityDiffers(ClusterError):
    """The data directory was made with another durability than the one asked for."""


class NodesDiffer(ClusterError):
    """The data directory was made with another number of NATS servers than the one asked for."""


class EnginesMissing(ClusterError):
    """The data directory was used with an engine that was not asked for."""


class NoJournal(ClusterError):
    """Standbys were asked for, and there is no journal that they could follow."""


class ClientsDiffer(ClusterError):
    """What the environment says of TLS, and what the market is told, do not fit."""


class ProcessFailed(ClusterError):
    """A process ended early or was not ready in time."""


class OutOfReach(ProcessFailed):
    """A process listens, and TLS keeps us, not necessarily its clients, from asking whether it is ready."""
