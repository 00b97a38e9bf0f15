"""From one backend to another while both are in use."""

from asyncsess.backends.migrating.backend import MigratingBackend

__all__ = ["MigratingBackend"]
