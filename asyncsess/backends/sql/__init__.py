"""Sessions in PostgreSQL, MariaDB, MySQL or SQLite."""

from asyncsess.backends.sql.engine import Locking, SQLEngine

__all__ = ["Locking", "SQLEngine"]
