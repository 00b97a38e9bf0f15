"""Sessions in memcached."""

from asyncsess.backends.memcached.engine import MemcachedEngine

__all__ = ["MemcachedEngine"]
