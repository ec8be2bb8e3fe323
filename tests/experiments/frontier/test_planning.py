"""What it would take: seeds where seeds are what is missing, text where documents are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from experiments.frontier.planning import Gap, needed


def power(gap: Gap, seeds: float, text: float, comparisons: int) -> float:
    """Of a two-sided normal test at the corrected level, with other seeds and text."""
    sd = math.sqrt(gap.seeds * gap.runs / seeds + gap.documents / text)
    draws = gap.size + sd * np.random.default_rng(0).standard_normal(200_000)
    return float((np.abs(draws) > stats.norm.isf(0.025 / comparisons) * sd).mean())


def test_the_number_of_seeds_has_the_power_it_says():
    gap = Gap(size=0.01, seeds=6e-5, documents=5e-6, runs=3)
    found = needed(gap, comparisons=4)
    assert found is not None
    assert found["text"] == 1
    assert 0.8 <= power(gap, found["seeds"], 1, 4) < 0.85
    assert power(gap, found["seeds"] - 1, 1, 4) < 0.8


def test_where_documents_dominate_more_text_is_asked_for():
    gap = Gap(size=0.01, seeds=6e-5, documents=6e-5, runs=3)
    found = needed(gap, comparisons=1)
    assert found is not None
    assert found["text"] > 1
    assert power(gap, 10**9, 1, 1) < 0.8
    assert power(gap, found["seeds"], found["text"], 1) == pytest.approx(0.8, abs=0.03)


def test_no_gap_has_no_number():
    assert needed(Gap(0.0, 1e-4, 0.0, 3), 1) is None
