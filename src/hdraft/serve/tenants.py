"""Drafters for those who share a server: what one tenant's requests teach is drafted for that tenant alone."""

import logging
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from threading import Lock

from hdraft.drafting.databases.storage import DatabaseError
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.hierarchy.experience import Experience

MOST = 64
"""Tenants, beside one for each key."""

_log = logging.getLogger(__name__)


class Tenants:
    """A drafter for each tenant: a key, or one of its subdivisions.

    Without learning all draft with one, from what it was opened with. With it each has a D_m of its own, and D_s, what
    D_m was opened with, and experience in common. Tenants beyond the most there may be are drafted for as without
    learning, so that no one who holds a key takes memory without end, or another's place.

        folder/…                the drafter's, and what requests without key and subdivision taught
        folder/tenants/NAME/    a tenant's; the name is a hash of key and subdivision

    Args:
        drafter: as it was opened; it learns, or does not.
        keys: the keys there are.
        folder: where what is learnt is kept, see `HierarchyDrafter.save`; None for nowhere.

    Raises:
        DatabaseError: the folder holds something else.
    """

    def __init__(self, drafter: HierarchyDrafter, keys: Iterable[str] = (), folder: Path | None = None) -> None:
        self.drafter = drafter
        self.folder = folder
        self._lock = Lock()
        self._saved: dict[str, object] = {}  # of each, what D_m had learned
        if folder is not None and folder.exists():
            drafter.load(folder)
        self._plain = drafter.scoped(drafter.model_database.anew())
        self._plain.learn = False
        self._learning = {name_of(): drafter} if drafter.learn else {}
        for key in dict.fromkeys(keys) if drafter.learn else ():
            self._learning[name_of(key)] = self._open(name_of(key))
        self._most = len(self._learning) + MOST

    def __len__(self) -> int:
        return len(self._learning)

    def drafter_of(self, name: str) -> HierarchyDrafter:
        """A tenant's drafter, by the tenant's name."""
        with self._lock:
            if name not in self._learning:
                if not self.drafter.learn or len(self._learning) >= self._most:
                    return self._plain
                try:
                    self._learning[name] = self._open(name)
                except DatabaseError as error:  # which costs drafts, and no answer
                    _log.error(
                        "what %s was taught cannot be opened (%s)", name, type(error.__cause__ or error).__name__
                    )
                    return self._plain
                if len(self._learning) == self._most:
                    _log.warning("there are %d tenants: for further ones nothing is learnt", self._most)
            return self._learning[name]

    def save(self) -> None:
        """Keep what has been learnt since the last time, if there is a folder for it.

        Raises:
            DatabaseError: it cannot be written.
        """
        if self.folder is None:
            return
        self.drafter.save(self.folder)
        with self._lock:
            learning = list(self._learning.items())
        for name, drafter in learning:
            learned = drafter.model_database.snapshot()[1]
            if drafter is not self.drafter and self._saved.get(name) is not learned and len(learned.tokens):
                drafter.save(self._place(name))
                self._saved[name] = learned

    def _open(self, name: str) -> HierarchyDrafter:
        database = self.drafter.model_database.anew()
        if self.folder is not None and self._place(name).exists():
            # experience is common to all, and is not that of when this tenant was saved
            before = self.drafter.scoped(database)
            before.experience, before.sampled_experience = Experience(), Experience()
            before.load(self._place(name))
            self._saved[name] = database.snapshot()[1]
        return self.drafter.scoped(database)

    def _place(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / "tenants" / name


def name_of(key: str | None = None, subdivision: str | None = None) -> str:
    """A tenant's name, which tells neither the key nor the subdivision."""
    return sha256(f"{key or ''}\0{subdivision or ''}".encode()).hexdigest()[:16]
