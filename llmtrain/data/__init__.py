"""Files of text and rows -> token stores -> packs -> the batches of a step.

`sources` (any file -> rows, documents) -> `formats` (rows -> examples) -> `chat` (examples -> ids and mask) -> `store`
(ids on disk) -> `packing` (store -> packs) -> `loader` (packs -> steps). `ledger` accounts for every row and token,
`split` holds documents out, `tokenize` opens tokenizers, `rendering` writes messages by a chat template, `spelt_tokens`
finds control tokens in their text, `personal` personal data in any; `survey` says what rows can be used for, `quality`
what is in them.
"""
