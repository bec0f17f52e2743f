"""Alembic revisions of the store; loaded only when a database is older than this software."""
