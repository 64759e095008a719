"""What a model is like: which drafts it can verify, what it calls its arguments, what is wrapped around it."""
