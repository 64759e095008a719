"""Adapters to other engines, one file each; nothing is imported from an engine that is not installed."""
