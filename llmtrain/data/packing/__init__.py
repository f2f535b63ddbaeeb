"""Stores -> packs of at most `data.max_seq_len` tokens, and packs -> microbatches of pairs or answers.

`documents` packs by stream and by best fit (`best_fit`); `pairs` and `answers` lay out preference pairs and labelled
answers, `mismatch` gives answers to other prompts.
"""
