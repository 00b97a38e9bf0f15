"""The contract of a backend, as a test class: see `asyncsess.backends.base`."""

from __future__ import annotations

import pytest

from asyncsess.backends.base import Backend
from asyncsess.testing.contract.groups import GroupContract
from asyncsess.testing.contract.helpers import KEY, NOW, OTHER_KEY, create, hold, put
from asyncsess.testing.contract.holds import HoldContract
from asyncsess.testing.contract.names import NameContract
from asyncsess.testing.contract.records import RecordContract

__all__ = ["KEY", "NOW", "OTHER_KEY", "BackendContract", "create", "hold", "put"]


class BackendContract(RecordContract, HoldContract, NameContract, GroupContract):
    """What `asyncsess.backends.base` promises, as tests.

        class TestMyBackend(BackendContract):
            @pytest.fixture
            async def backend(self):
                backend = MyBackend()
                await backend.open()
                yield backend
                await backend.aclose()

    Override `other` too if several backend objects, such as those of several processes, can share their records.
    """

    @pytest.fixture
    def other(self, backend: Backend) -> Backend:
        """Return another open backend with the same records and locks, or the same one if there is no other."""
        return backend
