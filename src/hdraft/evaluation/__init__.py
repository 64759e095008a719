"""Replaying recorded requests: what drafting gains, exactly and without a model."""
