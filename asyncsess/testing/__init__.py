"""For tests: a store with a clock that stands still, and the backend contract as a test class.

Name this module in a conftest.py to have its fixtures, and to see the values when an assertion of the contract fails:

    pytest_plugins = ["asyncsess.testing"]

The contract needs a plugin that runs ``async def`` tests, such as pytest-asyncio in its auto mode.
"""

from asyncsess.testing.clock import FakeClock, session_clock, session_store, until
from asyncsess.testing.contract import BackendContract

__all__ = ["BackendContract", "FakeClock", "session_clock", "session_store", "until"]
