from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from retrieval import Index
from retrieval.runtime import blas_threshold, faiss, threads

BLAS = """
import json
from threadpoolctl import threadpool_info
from retrieval.runtime import threads

def blas():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

before = blas()
with threads(1):
    inside = blas()
print(json.dumps([before, inside, blas()]))
"""


def test_blas_has_one_thread_inside_a_block():
    # In a process of its own, where BLAS begins with two whatever this one was started with.
    chosen = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    chosen |= {"OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", BLAS], capture_output=True, text=True, check=True, env=chosen)
    before, inside, after = json.loads(run.stdout)
    if not before:
        pytest.skip("threadpoolctl sees no BLAS here")
    assert set(inside) == {1}
    assert after == before
    if (os.cpu_count() or 1) > 1:
        assert max(before) == 2, "else this test shows nothing"


def test_threads_are_set_in_both_and_restored():
    before = torch.get_num_threads(), faiss.omp_get_max_threads()

    def fail():
        with threads(before[0] + 1):
            assert torch.get_num_threads() == faiss.omp_get_max_threads() == before[0] + 1
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before
    with pytest.raises(ValueError, match="n >= 1"), threads(0):
        pass


def test_blas_threshold_is_scoped():
    before = faiss.cvar.distance_compute_blas_threshold

    def fail():
        with blas_threshold(123):
            assert faiss.cvar.distance_compute_blas_threshold == 123
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert faiss.cvar.distance_compute_blas_threshold == before


FORK = """
import os, sys, numpy as np
from retrieval.runtime import counters_lock, faiss, threads
x = np.random.default_rng(0).standard_normal((4000, 64), dtype=np.float32)
index = faiss.IndexFlatIP(64)
index.add(x)
with threads(2), counters_lock:
    index.search(x, 4)
    child = os.fork()
    if not child:
        with counters_lock:
            index.search(x, 4)
        os._exit(7)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_can_search():
    assert subprocess.run([sys.executable, "-c", FORK], timeout=60, check=False).returncode == 7


class Near(Dataset):
    """What a stored vector's neighbours are, looked up where the item is asked for."""

    def __init__(self) -> None:
        self.keys = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
        self.stores = [Index(factory).add(self.keys) for factory in ("Flat", "IVF16,SQ8")]

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.stack([store.search(self.keys[100 * i : 100 * i + 50], 5).ids for store in self.stores])


# A worker imports this file again, and what it takes to import torch and FAISS is most of the time.
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_data_loader_workers_search(start):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    data = Near()
    with threads(2):  # so that there are threads which a fork does not take along
        alone = [data[i] for i in range(len(data))]
        loader = DataLoader(data, 6, num_workers=2, multiprocessing_context=start, timeout=120)
        assert torch.equal(torch.cat(list(loader)), torch.stack(alone))


# FAISS before torch has an OpenMP runtime of its own, whose threads a fork leaves behind as well.
ORDER = """
import {}
import numpy as np
from retrieval import Index
from retrieval.runtime import threads
from torch.utils.data import DataLoader, Dataset
keys = torch.randn(4000, 32)
stores = [Index("Flat").add(keys), Index("IVF16,Flat").add(keys)]
def near(n):
    torch.mm(keys, keys[:100].T)
    return torch.stack([store.search(keys[100 * n : 100 * n + 50], 5).ids for store in stores])
class Near(Dataset):
    def __len__(self): return 4
    def __getitem__(self, n): return near(n)
for count in (2, 1):
    with threads(count):
        alone = torch.stack([near(n) for n in range(4)])
        assert torch.equal(torch.cat(list(DataLoader(Near(), 2, num_workers=2, timeout=60))), alone)
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("order", ["torch, faiss", "faiss, torch"])
def test_forked_workers_search_whichever_was_imported_first(order):
    run = subprocess.run(
        [sys.executable, "-c", ORDER.format(order)], capture_output=True, text=True, timeout=200, check=False
    )
    assert run.stdout.strip() == "done", run.stderr


def test_torch_is_imported_before_faiss():
    script = (
        "import retrieval.runtime, sys; m = list(sys.modules); print(m.index('torch') < m.index('faiss'))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
