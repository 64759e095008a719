"""The databases of token sequences, from the highest temporal locality to the lowest: D_c, D_m, D_s.

`context` is D_c, `model` is D_m, `statistics` is D_s. The last two are suffix arrays (`suffixes`, sorted by `sorting`)
over the texts that a `database` holds; `frequent` counts what follows the frequent contexts of D_s when it is built.
`storage` is how they lie on disk, `vocabulary` what they remember of their tokenizer.
"""
