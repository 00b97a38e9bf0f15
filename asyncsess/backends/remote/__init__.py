"""What the backends on servers elsewhere have in common."""

from asyncsess.backends.remote.backend import RemoteBackend
from asyncsess.backends.remote.clock import ServerClock
from asyncsess.backends.remote.engine import Busy, Claim, Engine, Granted

__all__ = ["Busy", "Claim", "Engine", "Granted", "RemoteBackend", "ServerClock"]
