"""Clients of Redis servers: how one is made, and whether it and its server are fit for sessions."""

from __future__ import annotations

import logging
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as LostConnectionError

from asyncsess.errors import StoreError

logger = logging.getLogger("asyncsess")

Client = Redis | RedisCluster
TIMEOUT: Final = 5.0
_MOST_CONNECTIONS: Final = 32
_OLDEST: Final = (7, 0)


def new_client(url: str) -> Redis:
    """Return a client that tries a command three times when it loses its connection.

    It does not stop waiting for a slow server by itself: it would do so with ``asyncio.wait_for``, in which a
    cancellation can get lost before Python 3.12.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_MOST_CONNECTIONS,
        timeout=TIMEOUT,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 2, supported_errors=(LostConnectionError,)),
        socket_timeout=None,
        socket_connect_timeout=TIMEOUT,
        health_check_interval=30,
    )
    return Redis.from_pool(pool)


def is_cluster(client: Client) -> bool:
    """Tell whether a client is one of a cluster."""
    return isinstance(client, RedisCluster)


def check_client(client: Client) -> None:
    """Refuse a client that changes what it reads.

    Raises:
        ValueError: It decodes answers.
    """
    options: dict[str, Any] = (
        client.connection_kwargs if isinstance(client, RedisCluster) else client.connection_pool.connection_kwargs
    )
    if options.get("decode_responses"):
        raise ValueError("sessions are bytes: make the client without decode_responses=True")


async def check_server(client: Client) -> None:
    """Refuse a server that does not know the scripts, or that deletes sessions when its memory is full.

    Raises:
        StoreError: It is too old, or evicts keys of all kinds.
    """
    for facts in await _facts(client):
        version = str(facts.get("valkey_version") or facts.get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
            raise StoreError(f"the server is version {version}; sessions need Redis 7.0, Valkey, or later")
        policy = str(facts.get("maxmemory_policy", "noeviction"))
        if policy.startswith("allkeys"):
            raise StoreError(
                f"the server's maxmemory-policy is {policy}: when its memory is full, it would delete sessions, and "
                "locks that are held; set it to noeviction, or give sessions a server of their own"
            )
        if policy != "noeviction":
            logger.warning(
                "the server's maxmemory-policy is %s: when its memory is full, it deletes sessions before their time; "
                "noeviction keeps them",
                policy,
            )


async def _facts(client: Client) -> list[dict[str, Any]]:
    if isinstance(client, RedisCluster):
        found: dict[str, dict[str, Any]] = await client.info(target_nodes=RedisCluster.PRIMARIES)
        return list(found.values()) if all(isinstance(facts, dict) for facts in found.values()) else [found]
    return [await client.info()]
