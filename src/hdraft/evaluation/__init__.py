"""Replay of recorded requests without a model; Spec-Bench with any model and method, and its report."""
