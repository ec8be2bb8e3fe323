"""The memory inside of a training run: saved, resumed, compiled, counted, in threads, forks and ranks."""

from __future__ import annotations

import copy
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.ledger import Ledger
from retrieval import SnapshotError
from retrieval.enrollment import enroll
from retrieval.rolling import RollingMemory
from tests.retrieval.rolling.test_memory import BACKENDS, HEADS, ROWS, D, entries, memory


def continued(real: RollingMemory, steps: range) -> list[Tensor]:
    """Everything later searches bring."""
    found = []
    for step in steps:
        real.add(*entries(step, 5, whole=False))
        if step % 4 == 3:
            real.reset(torch.tensor([step % ROWS]))
        hits = real.search(entries(100 + step, 4, whole=False)[0], 3)
        found += [hits.scores, hits.ids, hits.mask, *real.gather(hits)]
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", ["torch.save", "snapshot", "deepcopy"])
def test_a_resumed_memory_goes_on_bit_by_bit(tmp_path, backend, way):
    # Few lists looked into: which list an entry is in must come back, too.
    options = {"nlist": 4, "nprobe": 1, "retrain": 9} if backend == "ivf" else {}
    real = memory(backend, **options)
    continued(real, range(9))
    if way == "torch.save":
        file = io.BytesIO()
        torch.save(real.state_dict(), file)
        file.seek(0)
        again = memory(backend, **options)
        again.load_state_dict(torch.load(file, weights_only=True))
    elif way == "snapshot":
        real.save(tmp_path / "m")
        again = RollingMemory.open(tmp_path / "m")
    else:
        again = copy.deepcopy(real)
    one, two = continued(real, range(9, 20)), continued(again, range(9, 20))
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


def test_a_state_is_a_copy():
    real = memory()
    real.add(*entries(0, 5))
    state, twin = real.state_dict(), copy.deepcopy(real)
    real.add(*entries(1, 5))
    assert state["written"].tolist() == twin.written.tolist() == [5] * ROWS
    assert real.written.tolist() == [10] * ROWS


def test_another_memorys_state_is_refused():
    real = memory("ivf")
    real.add(*entries(0, 30))
    good = real.state_dict()

    def refuses(match: str, target: RollingMemory, state: dict) -> None:
        before = target.state_dict()
        with pytest.raises(ValueError, match=match):
            target.load_state_dict(state)
        after = target.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before if isinstance(before[k], Tensor))

    refuses("capacity is 12 there and 13 here", memory("ivf", 13), good)
    refuses("nlist is 4 there and 3 here", memory("ivf", nlist=3), good)
    refuses("no tensor 'centroids'", memory("ivf"), {**memory("dense").state_dict(), **real.settings})
    refuses("keys is torch.float32 .* and torch.float16", memory("ivf", dtype=torch.float16), good)
    refuses("no state of a RollingMemory", memory("ivf"), {})
    refuses("of format 1, but of 2", memory("ivf"), {**good, "version": 2})
    refuses("contradict", memory("ivf"), {**good, "index": good["index"].roll(1, 1)})
    refuses("contradict", memory("ivf"), {**good, "begin": good["written"] + 1})
    refuses("lists have numbers", memory("ivf"), {**good, "lists": good["lists"] + 4})
    refuses("not finite", memory("ivf"), {**good, "values": good["values"] * torch.nan})
    memory("dense").load_state_dict(good)  # lists are extra


def test_a_damaged_or_foreign_folder_is_refused(tmp_path):
    real = memory()
    real.add(*entries(0, 30))
    real.save(tmp_path / "m")
    for file in (tmp_path / "m").iterdir():
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(SnapshotError):
            RollingMemory.open(tmp_path / "m")
        file.write_bytes(content)
    RollingMemory.open(tmp_path / "m")
    with pytest.raises(SnapshotError):
        RollingMemory.open(tmp_path / "other")


SAVING = """
import sys, torch
from retrieval.rolling import RollingMemory
real = RollingMemory(4, 2, 4000, 32, 32)
step = 0
while True:
    keys = torch.full((4, 2, 1000, 32), float(step))
    real.add(keys, keys)
    real.save(sys.argv[1])
    print(step, flush=True)
    step += 1
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_whoever_is_killed_while_saving_leaves_a_whole_memory(tmp_path):
    path = tmp_path / "m"
    for delay in (0.0, 0.01):
        with subprocess.Popen([sys.executable, "-c", SAVING, str(path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(3):
                child.stdout.readline()
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        real = RollingMemory.open(path)
        ids = torch.arange(int(real.written[0]))[-4000:].view(1, 1, 1, -1).expand(4, 2, 1, -1)
        past = real.gather(ids)
        assert past.mask.all()
        assert torch.equal(past.values[..., 0], (ids // 1000).float())


# In a process of its own, where no annotation is checked: the checker itself cannot be compiled.
COMPILING = """
import torch
from retrieval.rolling import RollingMemory
real = RollingMemory(3, 2, 12, 4, 2)
def read(x):
    past = real.gather(real.search(2 * x, 3))
    scores = torch.einsum("bhtd,bhtkd->bhtk", x, past.keys).masked_fill(~past.mask, -torch.inf)
    return torch.einsum("bhtk,bhtkd->bhtd", scores.softmax(-1).nan_to_num(), past.values)
compiled = torch.compile(read, fullgraph=True, backend="aot_eager")
for step in range(12):  # an empty memory first
    x = torch.randn(3, 2, 5, 4)
    assert torch.equal(compiled(x), read(x)), step
    assert bool(read(x).any()) == bool(step)
    real.add(x, x[..., :2])
"""


def test_a_search_inside_a_compiled_function_breaks_no_graph():
    subprocess.run([sys.executable, "-c", COMPILING], check=True, timeout=120)


def test_searching_and_reading_have_a_price():
    real, n, stored, k = memory("dense", 400), 7, 100, 5
    real.add(*entries(0, stored, whole=False))
    queries = entries(1, n, whole=False)[0]
    with FlopCounterMode(display=False) as counter:
        found = real.search(queries, k)
        real.gather(found)
    assert sum(counter.get_flop_counts()["Global"].values()) == found.flops
    with Ledger() as ledger:
        real.gather(real.search(queries, k))
    pairs = ROWS * HEADS * n * stored
    listed = (found.flops - 2 * D * pairs) // (2 * D)
    assert k * ROWS * HEADS * n <= listed < 2 * k * ROWS * HEADS * n  # scored again
    assert found.bytes_random == 4 * D * listed
    assert ledger.flops == found.flops
    gathered = 4 * (D + 2) * k * ROWS * HEADS * n
    assert ledger.bytes == found.bytes + 2 * gathered + 16 * k * ROWS * HEADS * n
    lists = memory("ivf", 400, nlist=8, nprobe=1)
    lists.add(*entries(0, stored, whole=False))
    assert lists.search(queries, k).flops < found.flops
    assert lists.work["train"].flops > 0


def test_the_operator_passes_torchs_own_checks():
    real = memory()
    real.add(*entries(0, 6))
    found = real.search(entries(1, 2)[0], 3)
    for ids, mask in ((found.ids, found.mask), (found.ids[:1], found.mask[:1])):
        torch.library.opcheck(
            torch.ops.mnemograph.recall.default,
            (ids, mask, None, enroll(real._ring)),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_thread_may_add_while_others_search(backend):
    real = memory(backend, 300, nlist=8, nprobe=8, retrain=100)
    going, wrong = threading.Event(), []

    def write() -> None:
        for step in range(40):
            # The value says the key, so a mixture of two entries would show.
            keys = entries(step, 40, whole=False)[0]
            real.add(keys, keys[..., :2])
            if step % 20 == 19:
                real.reset(torch.tensor([0]))
        going.set()

    def read(seed: int) -> None:
        try:
            while not going.is_set():
                past = real.gather(real.search(entries(seed, 9, whole=False)[0], 4))
                assert torch.equal(past.keys[..., :2], past.values)
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=write), *(threading.Thread(target=read, args=[i]) for i in range(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert going.is_set()


FORKING = """
import os, sys, torch
from retrieval.rolling import RollingMemory
from retrieval.runtime import threads
keys = torch.randn(2, 1, 2000, 16)
with threads(2):
    for backend in ("dense", "exact", "ivf"):
        real = RollingMemory(2, 1, 2000, 16, 16, backend=backend, nlist=20)
        real.add(keys, keys)
        before = real.search(keys[:, :, :300], 4)
        child = os.fork()
        if not child:
            after = real.search(keys[:, :, :300], 4)
            real.add(keys[:, :, :9], keys[:, :, :9])
            os._exit(7 if torch.equal(before.ids, after.ids) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, backend
        assert real.written.tolist() == [2000, 2000]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_a_memory_of_its_own():
    subprocess.run([sys.executable, "-c", FORKING], timeout=120, check=True)


RANK = """
import json, os, sys, torch
import torch.distributed as dist
from retrieval.rolling import RollingMemory
number, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)

class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.memory = RollingMemory(3, 2, 12, 4, 4)
        self.project = torch.nn.Linear(4, 4, bias=False)

    def forward(self, x):
        queries = self.project(x)
        past = self.memory.gather(self.memory.search(queries, 3))
        weights = torch.einsum("bhtd,bhtkd->bhtk", queries, past.keys).masked_fill(~past.mask, 0)
        return torch.einsum("bhtk,bhtkd->bhtd", weights, past.values)

torch.manual_seed(0)
module = torch.nn.parallel.DistributedDataParallel(Attention())
real, alone = module.module.memory, RollingMemory(3, 2, 12, 4, 4)
draw = torch.Generator().manual_seed(number)
for step in range(5):  # this rank's own batches
    x = torch.randn(3, 2, 4, 4, generator=draw)
    module(x).square().sum().backward()
    real.add(x, x)
    alone.add(x, x)
one, two = real.state_dict(), alone.state_dict()
own = all(torch.equal(one[name], two[name]) for name in ("keys", "values", "index", "written"))
with open(f"{folder}/{number}.json", "w") as file:
    json.dump({"own": own, "gradient": module.module.project.weight.grad.tolist()}, file)
dist.destroy_process_group()
os._exit(0)  # gloo's threads are not always joined when the interpreter ends, which aborts it
"""


@pytest.mark.slow
def test_ranks_keep_memories_of_their_own(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", RANK, str(n), str(tmp_path)]) for n in range(2)]
    assert [one.wait(120) for one in running] == [0, 0]
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2))
    assert one["own"]
    assert two["own"]
    assert one["gradient"] == two["gradient"]
    assert any(map(any, one["gradient"]))
