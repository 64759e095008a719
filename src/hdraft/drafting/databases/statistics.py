"""D_s, the statistics-dependent database: general text, the lowest temporal locality."""

from hdraft.drafting.databases.database import Database
from hdraft.drafting.databases.frequent import count_frequent
from hdraft.drafting.databases.suffixes import SuffixArray
from hdraft.drafting.drafter import TokenIds


class StatisticsDatabase(Database):
    """General text as a suffix array with its frequent contexts counted: read-only, shared by all requests.

    >>> database = StatisticsDatabase.from_tokens([5, 6, 5, 7, 0], vocab_size=8, eos_token_id=0)
    >>> database.array.suffixes.tolist()
    [4, 0, 2, 1, 3]
    """

    kind = "statistics"

    def _sorted(self, ids: TokenIds) -> SuffixArray:
        return count_frequent(super()._sorted(ids), self.separator)
