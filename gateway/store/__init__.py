"""What the gateway remembers over a kill: leases, their timeline, tokens, money.

`Store.open(url)` is the entry; SQLite by default, PostgreSQL by URL.
"""

from gateway.store.engine import StoreError
from gateway.store.joins import Heard, Joins
from gateway.store.store import Store
from gateway.store.timeline import Event

__all__ = ["Event", "Heard", "Joins", "Store", "StoreError"]
