"""Statistics of numbers, in numpy only: what evaluations, reports and comparisons of runs share.

`intervals` has confidence intervals, `weighted` means and correlations, `labelled` ROC curves and confusion matrices,
`trend` smoothing, noise, trends and spikes of curves.
"""
