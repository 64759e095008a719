"""Steps that are the same program every time, so that they can be captured as CUDA graphs and compiled."""
