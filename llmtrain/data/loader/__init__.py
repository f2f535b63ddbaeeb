"""Packs -> the steps of a run: `order` says which pack comes when, `batches` makes microbatches, `plan` fixes both."""
