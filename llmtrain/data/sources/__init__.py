"""Any file, folder or hub dataset -> rows and documents, read, cut to a slice and cleaned.

`files` finds them, `readers` reads rows (one table of file types), `documents` and `text` read plain text, `clean` and
`ngrams` drop what is not wanted.
"""
