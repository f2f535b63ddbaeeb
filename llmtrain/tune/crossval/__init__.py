"""Cross-validation: K runs of a recipe, each on all rows but one fold's, so that every row is predicted once.

`folds` assigns groups of rows, `rows` reads them and writes the folds' files, `plan` is what a folder of folds holds,
`runs` trains them, `predictions` asks each model for its held-out rows, `summary` and `page` report.
"""
