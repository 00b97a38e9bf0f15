"""Values to bytes and back: MessagePack, JSON, and a wrapper that encrypts.

What a session holds comes back as it was put in, or it is refused: a tuple that would come back as a list,
a ``Decimal`` that would come back as a string, raise `CodecError` with the path of the value.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec

from asyncsess.errors import CodecError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

_MAX_DEPTH: Final = 100
Path = tuple[object, ...]


class Codec(Protocol):
    """How a session's values become the payload that a store keeps.

    Encoding is two steps, because a change is found by comparing encoded values, and encryption gives other
    bytes each time.
    """

    def encode(self, values: dict[str, Any], touched: Collection[str] | None = None) -> bytes:
        """Return the values as bytes, always the same bytes for the same values.

        Args:
            values: What a session holds.
            touched: The keys of the values that need to be checked: all others are as `decode` returned them. All
                need to be if None.

        Raises:
            CodecError: A value can't be encoded, or would not come back unchanged.
        """
        ...

    def decode(self, data: bytes) -> dict[str, Any]:
        """Return the values that `encode` made these bytes of.

        Raises:
            CodecError: The bytes are not of this codec.
        """
        ...

    def seal(self, data: bytes, key: str) -> bytes:
        """Return the payload to store under ``key``."""
        ...

    def unseal(self, payload: bytes, key: str) -> bytes:
        """Return the data that `seal` made this payload of.

        Raises:
            CodecError: The payload was not sealed for this key, or not with a known secret.
        """
        ...


class _RefusedError(Exception):
    """A value would not come back unchanged; ``steps`` lead to it, the last one first."""

    def __init__(self, reason: str, *steps: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps = list(steps)


class _PlainCodec:
    """What MessagePack and JSON share: the check of the values, and no seal."""

    _name: str
    _encode: Callable[[Any], bytes]
    _decode: Callable[[bytes], Any]
    _scalars: frozenset[type]
    _keys: frozenset[type]

    def encode(self, values: dict[str, Any], touched: Collection[str] | None = None) -> bytes:
        try:
            self._check(values if touched is None else {key: values[key] for key in touched if key in values})
            return self._encode(values)
        except _RefusedError as refused:
            path = refused.steps[::-1]
            raise CodecError(refused.reason, path if len(path) <= _MAX_DEPTH else path[:5]) from None
        except (ValueError, OverflowError, TypeError, msgspec.MsgspecError) as error:
            raise CodecError(f"can't be stored as {self._name}: {error}", self._culprit(values)) from error

    def decode(self, data: bytes) -> dict[str, Any]:
        try:
            values = self._decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError, TypeError) as error:
            raise CodecError(f"the stored data is not {self._name}: {error}") from error
        if type(values) is not dict:
            raise CodecError(f"the stored data is {type(values).__name__}, not a mapping")
        return values

    def seal(self, data: bytes, key: str) -> bytes:
        return data

    def unseal(self, payload: bytes, key: str) -> bytes:
        return payload

    def _check(self, value: object, depth: int = 0) -> None:
        """Refuse whatever would not come back with the very type that it has."""
        steps: Iterable[tuple[object, object]]
        if type(value) is dict:
            mapping: dict[object, object] = value
            if not self._keys.issuperset(map(type, mapping)):
                key = next(key for key in mapping if type(key) not in self._keys)
                raise _RefusedError(f"a key of type {_name_of(key)} would not come back unchanged", key)
            if self._scalars.issuperset(map(type, mapping.values())):
                return
            steps = mapping.items()
        elif type(value) is list:
            sequence: list[object] = value
            if self._scalars.issuperset(map(type, sequence)):
                return
            steps = enumerate(sequence)
        else:
            self._check_other(value)
            return
        if depth > _MAX_DEPTH:
            raise _RefusedError(f"nested deeper than {_MAX_DEPTH} levels, or contains itself")
        for step, item in steps:
            if type(item) in self._scalars:
                continue
            try:
                self._check(item, depth + 1)
            except _RefusedError as refused:
                refused.steps.append(step)
                raise

    def _check_other(self, value: object) -> None:
        raise _RefusedError(
            f"a value of type {_name_of(value)} would not come back unchanged; store it as plain "
            "None, bool, int, float, str, list or dict"
        )

    def _culprit(self, values: dict[str, Any]) -> Path:
        for path, leaf in _leaves(values, ()):
            try:
                self._encode(leaf)
            except (ValueError, OverflowError, TypeError, msgspec.MsgspecError):
                return path
        return ()


class MsgpackCodec(_PlainCodec):
    """MessagePack, the default: None, bool, int (64 bits), float, str, bytes, UTC datetimes, lists, dicts.

    Keys of dicts may be str, int or bytes.
    """

    _name = "MessagePack"
    _encode = staticmethod(msgspec.msgpack.Encoder().encode)
    _decode = staticmethod(msgspec.msgpack.Decoder().decode)
    _scalars = frozenset({type(None), bool, int, float, str, bytes})
    _keys = frozenset({str, int, bytes})

    def _check_other(self, value: object) -> None:
        if type(value) is datetime:
            if value.tzinfo is UTC and not value.fold:
                return
            raise _RefusedError("a datetime comes back unchanged only if its tzinfo is datetime.timezone.utc")
        super()._check_other(value)


class JSONCodec(_PlainCodec):
    """JSON, for data that other programs read: None, bool, int, finite float, str, lists, dicts with str keys."""

    _name = "JSON"
    _encode = staticmethod(msgspec.json.Encoder().encode)
    _decode = staticmethod(msgspec.json.Decoder().decode)
    _scalars = frozenset({type(None), bool, int, str})
    _keys = frozenset({str})

    def _check_other(self, value: object) -> None:
        if type(value) is float:
            if math.isfinite(value):
                return
            raise _RefusedError(f"JSON has no {value}")
        super()._check_other(value)


class EncryptedCodec:
    """Encrypt what another codec encodes, bound to the session it belongs to.

    A payload is: one byte for the algorithm, 4 bytes that name the secret, 12 bytes nonce, ciphertext and tag.
    The session's key is associated data, so a payload that was copied to another session does not open. Nonces
    are random, so change the secret before it has sealed 2**32 payloads (NIST SP 800-38D, 8.3).

    Args:
        secrets: 32 bytes each, newest first. The first seals; all of them open, so a secret is retired by
            putting a new one before it, and dropping it when its sessions are gone.
        codec: What encodes the values.
        algorithm: Which cipher seals; payloads of the other one still open.

    Raises:
        ValueError: There is no secret, or one is not of 32 bytes.
    """

    _ALGORITHMS: Final = {"aes-gcm": 1, "chacha20-poly1305": 2}
    _HEAD, _NONCE = 5, 12

    def __init__(
        self,
        secrets: Sequence[bytes],
        codec: Codec | None = None,
        *,
        algorithm: Literal["aes-gcm", "chacha20-poly1305"] = "aes-gcm",
    ) -> None:
        if not secrets or any(len(secret) != 32 for secret in secrets):
            raise ValueError("pass at least one secret, each of 32 bytes, as os.urandom(32) returns them")
        if algorithm not in self._ALGORITHMS:
            raise ValueError(f"algorithm is one of {', '.join(self._ALGORITHMS)}, not {algorithm!r}")
        self._codec = codec or MsgpackCodec()
        self._ciphers = {
            bytes([number]) + _secret_name(secret): _cipher(name, secret)
            for secret in reversed(secrets)
            for name, number in self._ALGORITHMS.items()
        }
        self._head = bytes([self._ALGORITHMS[algorithm]]) + _secret_name(secrets[0])

    def __repr__(self) -> str:
        return f"EncryptedCodec({self._codec!r}, secrets={len(self._ciphers) // 2})"

    def encode(self, values: dict[str, Any], touched: Collection[str] | None = None) -> bytes:
        return self._codec.encode(values, touched)

    def decode(self, data: bytes) -> dict[str, Any]:
        return self._codec.decode(data)

    def seal(self, data: bytes, key: str) -> bytes:
        nonce = os.urandom(self._NONCE)
        bound_to = self._head + key.encode()
        return self._head + nonce + self._ciphers[self._head].encrypt(nonce, data, bound_to)

    def unseal(self, payload: bytes, key: str) -> bytes:
        from cryptography.exceptions import InvalidTag

        head, nonce = payload[: self._HEAD], payload[self._HEAD : self._HEAD + self._NONCE]
        cipher = self._ciphers.get(head)
        if cipher is None or len(nonce) < self._NONCE:
            raise CodecError("the stored session is not encrypted with any of the secrets given")
        try:
            return cipher.decrypt(nonce, payload[self._HEAD + self._NONCE :], head + key.encode())
        except InvalidTag as error:
            raise CodecError("the stored session was altered, or sealed for another session") from error


def _cipher(name: str, secret: bytes) -> AESGCM | ChaCha20Poly1305:
    try:
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError as error:
        raise ImportError("EncryptedCodec needs cryptography: pip install 'asyncsess[crypto]'") from error
    return aead.AESGCM(secret) if name == "aes-gcm" else aead.ChaCha20Poly1305(secret)


def _secret_name(secret: bytes) -> bytes:
    return hashlib.sha256(b"asyncsess secret name\0" + secret).digest()[:4]


def _name_of(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _leaves(value: object, path: Path) -> Iterator[tuple[Path, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key), key
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path, value
