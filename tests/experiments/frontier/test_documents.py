"""Documents as a sample: influence, its variance, and how many documents there really are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.frontier.documents import Text


def test_influence_is_what_leaving_a_document_out_does():
    draw = np.random.default_rng(0)
    sizes = np.round(1000 * np.exp(draw.standard_normal(12)))
    nats = sizes * draw.uniform(0.5, 1.5, 12)
    text = Text(sizes)
    whole = nats.sum() / sizes.sum() / math.log(2)
    for place in range(12):
        left = np.delete(nats, place).sum() / np.delete(sizes, place).sum() / math.log(2)
        assert text.influence(nats)[place] == pytest.approx(whole - left)


def test_documents_of_equal_size_give_the_textbook_error_of_a_mean():
    nats = np.random.default_rng(1).uniform(1, 2, 30)
    text = Text(np.full(30, 10.0))
    error = (nats / 10 / math.log(2)).std(ddof=1) / math.sqrt(30)
    assert math.sqrt((text.influence(nats) ** 2).sum()) == pytest.approx(error, rel=0.02)
    assert text.effective == pytest.approx(30)


def test_large_documents_and_unread_ones_lower_the_effective_number():
    assert Text(np.array([1.0, 1.0, 0.0])).effective == pytest.approx(2)
    assert Text(np.array([1.0, 1.0, 0.0])).reached == 2
    assert Text(np.array([100.0, 1.0, 1.0])).effective < 1.1
    assert Text(np.array([5.0, 5.0, 0.0])).influence(np.array([3.0, 4.0, 0.0]))[2] == 0
