"""Clients of Redis servers: how one is made, and whether it and its server are fit for sessions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import ConnectionPool, Redis, RedisCluster, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as LostConnectionError

from asyncsess.errors import StoreError

logger = logging.getLogger("asyncsess")

Client = Redis | RedisCluster
_TIMEOUT: Final = 5.0
MOST_AT_ONCE: Final = 32  # commands under way
_OLDEST: Final = (7, 0)


class Address(NamedTuple):
    """Where servers are, from a URL.

    Attributes:
        kind: ``"cluster"``, ``"sentinel"``, or ``""`` for one server.
        hosts: Host and port of each.
        service: What sentinels call the servers that they watch.
        options: What redis-py understands.
    """

    kind: str
    hosts: list[tuple[str, int]]
    service: str
    options: dict[str, Any]

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is used."""
        return issubclass(self.options.get("connection_class", object), SSLConnection)


def parse(url: str) -> Address:
    """Read a URL: ``redis://host:6379/0``, ``redis+cluster://host,host`` or ``redis+sentinel://host,host/service``.

    ``rediss`` stands for TLS, and everything else is as redis-py has it.

    Raises:
        ValueError: It is none of these.
    """
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    login, _, hosts = parts.netloc.rpartition("@")
    first, *others = hosts.split(",")
    if kind not in {"", "cluster", "sentinel"} or (others and not kind):
        raise ValueError(
            f"{_without_password(parts)} is no URL of Redis servers: use redis://host, redis+cluster://host,host or "
            "redis+sentinel://host,host/service"
        )
    service, path = (parts.path.strip("/"), "") if kind == "sentinel" else ("", parts.path)
    if kind == "sentinel" and not service:
        raise ValueError("name the service that the sentinels watch: redis+sentinel://host,host/service")
    database = path.strip("/") if scheme in {"redis", "rediss"} else ""
    if database and not database.isdigit():
        raise ValueError(
            f"the path of a Redis URL is the number of a database, such as redis://host/0, and not {database!r}"
        )
    plain = parts._replace(scheme=scheme, netloc=f"{login}@{first}" if login else first, path=path)
    options = dict(parse_url(plain.geturl()))
    port = 26379 if kind == "sentinel" else 6379
    located = [urlsplit(f"//{host}") for host in hosts.split(",")]
    return Address(kind, [(where.hostname or "localhost", where.port or port) for where in located], service, options)


def _without_password(parts: SplitResult) -> str:
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def connect(server: str | Client) -> tuple[Client, Sequence[Client]]:
    """Return a client, and which ones are ours to close; one of ours tries a command again if its connection breaks.

    It does not stop waiting for a slow server by itself: it would do so with ``asyncio.wait_for``, in which a
    cancellation can get lost before Python 3.12.
    """
    if not isinstance(server, str):
        return server, ()
    address, timeout = parse(server), timeout_of(server)
    options = address.options | {
        "max_connections": MOST_AT_ONCE + 1,  # for the listener
        "socket_timeout": None,
        "socket_connect_timeout": timeout,
        "health_check_interval": 30,
    }
    plain = {name: value for name, value in options.items() if name not in {"host", "port", "connection_class"}}
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 2, supported_errors=(LostConnectionError,))
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.hosts]
        cluster = RedisCluster(startup_nodes=nodes, **plain, ssl=address.is_encrypted)
        return cluster, [cluster]
    if address.kind == "sentinel":
        watcher = Sentinel(address.hosts, socket_connect_timeout=timeout)  # type: ignore[no-untyped-call]
        first: Redis = watcher.master_for(address.service, retry=retry, **plain, ssl=address.is_encrypted)
        return first, [first, *watcher.sentinels]
    client = Redis.from_pool(ConnectionPool(**options, retry=retry))
    return client, [client]


def timeout_of(server: str | Client) -> float:
    """Return the seconds that a server has for an answer: the ``socket_timeout`` of its URL or client, or 5."""
    return float(_options_of(server).get("socket_timeout") or _TIMEOUT)


def _options_of(server: str | Client) -> Mapping[str, Any]:
    if isinstance(server, str):
        return parse(server).options
    options: Mapping[str, Any] = (
        server.connection_kwargs if isinstance(server, RedisCluster) else server.connection_pool.connection_kwargs
    )
    return options


def is_cluster(client: Client) -> bool:
    """Tell whether a client is one of a cluster."""
    return isinstance(client, RedisCluster)


def check(server: object) -> None:
    """Refuse what is neither a URL nor a client, and a client that changes what it reads.

    Raises:
        TypeError: It is neither.
        ValueError: The URL is none, or has an option that there is not, or the client decodes answers.
    """
    if not isinstance(server, str | Redis | RedisCluster):
        raise TypeError(f"give the server's URL, or a client of redis.asyncio, instead of {type(server)!r}")
    if isinstance(server, str):
        _check_options(server)
    if _options_of(server).get("decode_responses"):
        raise ValueError("sessions are bytes: make the client without decode_responses=True")


def _check_options(url: str) -> None:
    """Refuse an option that redis-py would stumble over at the first command; nothing is connected."""
    try:
        client, _ = connect(url)
        if isinstance(client, Redis):
            client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except TypeError as error:
        raise ValueError(f"redis-py can't use an option of the URL: {error}") from None


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
