"""Curves for drawing: thinning keeps every extreme, means do not invent values."""

from __future__ import annotations

import numpy as np

from llmtrain.runs.report.curves import BUCKETS, Curve, column, running_mean, thinned
from llmtrain.runs.rows import Rows


def long_curve(num_points: int = 100_000) -> Curve:
    drawn = np.random.default_rng(0)
    return Curve(np.arange(num_points, dtype=float), drawn.normal(size=num_points))


def test_thinning_keeps_spikes_of_one_row() -> None:
    curve = long_curve()
    curve.y[[7, 43_210, 99_990]] = [100.0, 90.0, -80.0]
    few = thinned(curve)
    assert len(few.x) <= 2 * BUCKETS
    assert {100.0, 90.0, -80.0} <= set(few.y.tolist())
    assert (np.diff(few.x) > 0).all()
    assert set(zip(few.x.tolist(), few.y.tolist(), strict=True)) <= set(
        zip(curve.x.tolist(), curve.y.tolist(), strict=True)
    )


def test_every_bucket_keeps_its_lowest_and_highest() -> None:
    curve = long_curve(10_000)
    few = thinned(curve, buckets=10)
    for part in range(10):
        inside = (few.x >= 1000 * part) & (few.x < 1000 * (part + 1))
        whole = curve.y[1000 * part : 1000 * (part + 1)]
        assert (few.y[inside].min(), few.y[inside].max()) == (whole.min(), whole.max())


def test_a_stretch_that_is_not_finite_stays_a_gap() -> None:
    curve = long_curve()
    curve.y[40_000:60_000] = np.nan
    few = thinned(curve)
    assert np.isnan(few.y[(few.x > 41_000) & (few.x < 59_000)]).all()


def test_a_short_curve_is_not_thinned() -> None:
    curve = long_curve(2 * BUCKETS)
    assert thinned(curve) is curve


def test_a_running_mean_is_the_mean_of_the_rows_around() -> None:
    curve = long_curve(600)
    curve.y[300] = np.nan
    mean, rows = running_mean(curve)
    assert rows == 11
    np.testing.assert_allclose(mean.y[100], curve.y[95:106].mean())
    np.testing.assert_allclose(mean.y[0], curve.y[:6].mean())
    np.testing.assert_allclose(mean.y[300], np.nanmean(curve.y[295:306]))


def test_a_short_curve_has_no_running_mean() -> None:
    curve = long_curve(50)
    assert running_mean(curve) == (curve, 0)


def test_a_column_leaves_out_rows_without_the_field() -> None:
    curve = column(Rows([{"step": 1}, {"step": 2, "mfu": 0.5}, {"step": 3, "mfu": None}]), "mfu")
    assert curve.x.tolist() == [2.0, 3.0]
    np.testing.assert_equal(curve.y, [0.5, np.nan])
