"""The contract on PostgreSQL, MariaDB and SQLite."""

from asyncsess.testing import BackendContract


class TestSQL(BackendContract):
    pass
