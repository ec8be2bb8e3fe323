"""A corpus on disk: immutable segments, appended to, deleted from and searched."""

from retrieval.datastore.entries import Entries
from retrieval.datastore.lock import StoreBusyError
from retrieval.datastore.store import Datastore

__all__ = ["Datastore", "Entries", "StoreBusyError"]
