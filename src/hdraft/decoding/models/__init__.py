"""Properties of a model: the drafts it can verify, the names of its arguments, adapters and wrappers around it."""
