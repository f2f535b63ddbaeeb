"""Statistics of numbers, in numpy (tests of pairs in SciPy): what evaluations, reports and comparisons of runs share.

`intervals` has confidence intervals, `weighted` means and correlations, `labelled` ROC curves and confusion matrices,
`trend` smoothing, noise, trends and spikes of curves; `paired` compares two models on the same items.
"""
