"""hdraft: the same text from a language model, faster, by Hierarchy Drafting."""

__version__ = "0.1.0"
