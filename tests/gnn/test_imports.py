from __future__ import annotations

import subprocess
import sys

import pytest

import gnn


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, gnn; print([m for m in ('torch', 'torch_geometric', 'lightning', 'mann') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_reader_does_not_load_lightning():
    code = "import sys; from gnn import GraphReader; print('lightning' in sys.modules, 'mann' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_names_are_found_or_refused_by_name():
    assert [getattr(gnn, name).__name__ for name in gnn.__all__] == gnn.__all__
    with pytest.raises(AttributeError, match="GraphReader"):
        _ = gnn.GraphWriter
