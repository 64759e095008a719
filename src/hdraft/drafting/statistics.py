"""D_s, the statistics-dependent database: general text, the lowest temporal locality."""

from hdraft.drafting.database import Database


class StatisticsDatabase(Database):
    """General text as a suffix array: read-only, shared by all requests.

    >>> database = StatisticsDatabase.from_tokens([5, 6, 5, 7, 0], vocab_size=8, eos_token_id=0)
    >>> database.suffixes.tolist()
    [4, 0, 2, 1, 3]
    """

    kind = "statistics"
