"""Sessions in Redis or Valkey."""

from asyncsess.backends.redis.engine import RedisEngine

__all__ = ["RedisEngine"]
