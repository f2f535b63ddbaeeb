"""Text -> a tokenizer: `train` reads a run's sources, `bpe` learns byte-level BPE merges.

May import config, batch, protocols, system and data.
"""
