"""IsoFLOP profiles: what is drawn is what the summary says, and parabolas are through at least three sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.colors import same_color

from experiments.frontier import summarize
from experiments.report import Findings
from experiments.report.marks import DARK
from experiments.report.profiles import draw_profiles, parabola, profiles
from tests.experiments.synthetic import WIDTHS, rows


def point(params: float, loss: float) -> dict:
    return {"amounts": {"params": params}, "bits_per_byte": {"mean": loss}}


def test_a_parabola_in_log_size_is_found_again():
    lowest, bend = math.log(3e5), 0.2
    points = [point(n, 1.5 + bend * (math.log(n) - lowest) ** 2) for n in (1e5, 2e5, 4e5, 9e5)]
    fitted = parabola(points)
    assert fitted is not None
    assert fitted[0] == pytest.approx(bend)
    assert -fitted[1] / 2 / fitted[0] == pytest.approx(lowest)


def test_two_sizes_make_no_parabola():
    assert parabola([point(1e5, 2.0), point(2e5, 1.0)]) is None
    assert parabola([point(1e5, 2.0), point(1e5, 1.9), point(2e5, 1.0)]) is None


def test_every_dense_cell_is_a_point_and_the_chosen_ones_are_filled(measured: Findings):
    summary = measured.summary
    axes = draw_profiles(summary).axes[0]
    drawn = [tuple(place) for dots in axes.collections for place in dots.get_offsets().tolist()]
    expected = [
        (cell["amounts"]["params"], cell["bits_per_byte"]["mean"])
        for points in profiles(summary).values()
        for cell in points
    ]
    assert drawn == expected
    assert len(drawn) == len(summary["dense"])
    faces = [face for dots in axes.collections for face in dots.get_facecolors()]
    chosen = [cell["tuned"] for points in profiles(summary).values() for cell in points]
    assert [not same_color(face, "#ffffff") for face in faces] == chosen


def test_a_curve_for_each_budget_with_enough_widths():
    given = rows(dense_budgets=(1e12, 3e12, 1e13))
    summary = summarize(given)
    assert len(WIDTHS) >= 3
    assert len(draw_profiles(summary, DARK).axes[0].lines) == 3
    lonely = [row for row in given if row["arm"] != "dense" or row["budget"] < 5e12 or row["width"] == 96]
    axes = draw_profiles(summarize(lonely)).axes[0]
    assert len(axes.lines) == 2
    assert len(axes.collections) == 3
    heights = axes.lines[0].get_ydata()
    assert np.isfinite(np.asarray(heights)).all()


def test_rows_without_parameters_have_no_profile():
    given = rows()
    for row in given:
        row.pop("params")
    assert profiles(summarize(given)) == {}
