"""How a model computes several documents in one call, so that none sees another: the path of a run.

The paths, fastest first. All give the same numbers; the start-up check (`choose`) takes the first that is right:

    packs                documents end to end in one sequence, kept separate by the attention (`models/attention.py`)
    packs, with bounds   the same; layers that separate documents themselves are handed their bounds (`bounds`)
    packs, with groups   the same; modules in which a document would see another run per group of documents (`runs`)
    padded rows          a document per row, padded to the longest of its group (`rows`)
    equal rows           a document per row, only with others of its length

`groups` says which documents run together, `small` makes the small copy of a model that paths are tried on,
`leaks` finds the modules in which a document sees another, `tried` says how a trial fails.
"""
