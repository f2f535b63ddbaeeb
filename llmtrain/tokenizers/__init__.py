"""Text -> a tokenizer: `train` reads a run's sources, `bpe` learns byte-level BPE merges."""
