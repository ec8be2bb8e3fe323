"""Findings of invented and of real runs, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.report import Findings, find
from experiments.results import read_rows
from tests.experiments.synthetic import rows

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.fixture(scope="session")
def invented() -> Findings:
    return find(rows(), corpus={"name": "tales_of_50 %"}, question="Is it & more?")


@pytest.fixture(scope="session", params=["memory_per_flop", "scaling"])
def measured(request: pytest.FixtureRequest) -> Findings:
    return find(read_rows(RESULTS / request.param)[0], corpus={"source": "code"})
