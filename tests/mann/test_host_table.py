import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.ledger import Ledger
from mann import Context
from mann.host_table import FILE, STORAGES, HostTable
from mann.memory.engram import Engram
from mann.optim import TABLE_MODES, RoleOptimizer, parameter_roles
from retrieval.snapshot import SnapshotError
from tests.mann.inputs import randn

ROWS = torch.tensor([[3, 0, 3], [9, 1, 0]])


def weights(n_rows=10, d_row=6):
    found = randn(n_rows, d_row, dtype=torch.float32).detach()
    found[4] = 0
    return found * torch.logspace(-3, 3, n_rows)[:, None]


def naive(numbers, storage):
    """What is left of the numbers, row after row."""
    if storage == "int8":
        rows = []
        for row in numbers.tolist():
            scale = np.float32(max(abs(x) for x in row)) / np.float32(127)
            rows.append([float(round(x / scale) * scale) if scale else 0.0 for x in row])
        return torch.tensor(rows)
    return numbers.to(STORAGES[storage]).float()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_read_gives_what_the_storage_left(storage, tmp_path):
    numbers = weights()
    table = HostTable.of(numbers, storage)
    expected = naive(numbers, storage)
    assert (expected - numbers).abs().amax(1).le(numbers.abs().amax(1) / 127).all()
    table.save(tmp_path / "table")
    for one in (table, HostTable.open(tmp_path / "table"), HostTable(10, 6, storage, tmp_path / "table")):
        assert one.mapped == (one is not table)
        found = one(ROWS)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.detach(), expected[ROWS], rtol=1e-6, atol=0)
        assert one.read(torch.tensor(7)).shape == (6,)
        assert one.read(torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2, 6)


def test_the_file_is_plain_numpy(tmp_path):
    numbers = weights()
    HostTable.of(numbers).save(tmp_path / "table")
    assert np.array_equal(np.load(tmp_path / "table" / FILE, allow_pickle=False), numbers.numpy())


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_gradients_are_those_of_an_embedding(storage):
    table = HostTable.of(weights(), storage)
    embedding = nn.Embedding.from_pretrained(table.weight.detach().float(), freeze=False, sparse=True)
    factor = randn(2, 3, 6, seed=3, dtype=torch.float32).detach()
    for one in (table, embedding):
        (one(ROWS) * factor).square().sum().backward()
    assert isinstance(table.weight, nn.Parameter)
    assert table.weight.grad is not None
    assert embedding.weight.grad is not None
    # Each row that was named once, in order.
    assert table.weight.grad._indices().tolist() == [[0, 1, 3, 9]]
    expected = embedding.weight.grad.to_dense().to(STORAGES[storage])
    torch.testing.assert_close(table.weight.grad.to_dense(), expected)


def test_gradients_are_summed_before_they_are_rounded():
    table = HostTable.of(torch.ones(2, 1), "bfloat16")
    # In bfloat16 the sum would stay at 256.
    table(torch.zeros(1000, dtype=torch.int64)).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.to_dense()[0].item() == 1000


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", TABLE_MODES)
def test_it_learns_in_every_mode(storage, mode):
    torch.manual_seed(0)
    table = HostTable(8, 4, storage)
    table.weight.table_mode = mode  # type: ignore[attr-defined]
    assert [table.weight is one for one in parameter_roles(table)["table"]] == [True]
    optimizer, target = RoleOptimizer(table, {"table": 0.1}), torch.randn(8, 4)
    for number in range(250):
        rows = torch.randint(0, 8, (4,), generator=torch.Generator().manual_seed(number))
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - number / 250)
        optimizer.zero_grad()
        (table(rows) - target[rows]).square().sum().backward()
        optimizer.step()
    optimizer.settle()
    assert (table.weight - target).square().mean() < (1e-3 if storage == "float32" else 2e-3)


def test_what_is_only_read_has_nothing_to_train(tmp_path):
    HostTable.of(weights()).save(tmp_path / "table")
    for table in (HostTable.of(weights(), "int8"), HostTable.open(tmp_path / "table")):
        assert not list(table.parameters())
        assert not table(ROWS).requires_grad


@pytest.mark.parametrize("storage", STORAGES)
def test_a_state_comes_back_through_safetensors(storage, tmp_path):
    table = HostTable.of(weights(), storage)
    save_file(table.state_dict(), tmp_path / "state.safetensors")
    again = HostTable(10, 6, storage)
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert again.weight.dtype == STORAGES[storage]
    assert torch.equal(again.weight, table.weight)


def test_the_state_of_a_file_is_which_file(tmp_path):
    HostTable.of(weights()).save(tmp_path / "one")
    HostTable.of(2 * weights()).save(tmp_path / "other")
    one, other = (HostTable.open(tmp_path / name) for name in ("one", "other"))
    assert list(one.state_dict()) == ["_extra_state"]
    one.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="the state is of another table"):
        one.load_state_dict(other.state_dict())


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    path = tmp_path / "table"
    with pytest.raises(SnapshotError, match="there is no host table at"):
        HostTable.open(path)
    HostTable.of(weights()).save(path)
    with pytest.raises(ValueError, match=r"table holds another table.*'rows': 10.*'rows': 11"):
        HostTable(11, 6, "float32", path)
    with pytest.raises(ValueError, match=r"'float32'.*'int8'"):
        HostTable(10, 6, "int8", path)
    content = bytearray((path / FILE).read_bytes())
    content[-1] ^= 1
    (path / FILE).write_bytes(content)
    with pytest.raises(SnapshotError, match=r"table.npy is damaged"):
        HostTable.open(path)
    HostTable.open(path, verify=False)
    (path / FILE).write_bytes(content[:-8])
    with pytest.raises(SnapshotError, match=r"table.npy has \d+ bytes"):
        HostTable.open(path, verify=False)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "mine").write_text("kept")
    with pytest.raises(FileExistsError):
        HostTable.of(weights()).save(tmp_path / "table")
    assert (tmp_path / "table" / "mine").read_text() == "kept"


def test_it_stays_where_and_as_it_is():
    model = nn.Sequential(HostTable(10, 6, "bfloat16"), nn.Linear(6, 2))
    model.double().to("meta")
    assert model[1].weight.is_meta
    table = model[0]
    assert isinstance(table, HostTable)
    assert (table.weight.dtype, table.weight.device.type) == (torch.bfloat16, "cpu")
    assert table.read(ROWS, "meta").is_meta
    with torch.device("meta"):
        nowhere = HostTable(10, 6)
    assert nowhere(ROWS.to("meta")).shape == (2, 3, 6)
    assert nowhere.to_empty(device="cpu").weight.device.type == "cpu"


@pytest.mark.parametrize("mapped", [False, True])
def test_pickled_and_copied(mapped, tmp_path):
    table = HostTable.of(weights())
    if mapped:
        table.save(tmp_path / "table")
        table = HostTable.open(tmp_path / "table")
    for again in (pickle.loads(pickle.dumps(table)), copy.deepcopy(table)):
        assert torch.equal(again(ROWS), table(ROWS))
    # What is in a file is opened there again.
    assert (weights().numpy().tobytes() in pickle.dumps(table)) != mapped
    assert "10, 6" in repr(table)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_read_costs_the_rows_as_they_are_stored(storage):
    bills = []
    for n_rows in (10, 1000):
        table = HostTable(n_rows, 64, storage)
        with Ledger() as ledger, torch.no_grad():
            table(ROWS)
        bills.append((ledger.flops, ledger.bytes))
    assert bills[0] == bills[1]
    assert bills[0][0] == (6 * 64 if storage == "int8" else 0)


def test_a_memory_reads_it():
    tokens = torch.randint(0, 50, (2, 9))
    memory = Engram(4, n_rows=20, d_row=3, vocab_size=50, table=partial(HostTable, storage="bfloat16"))
    nn.init.normal_(memory.read.weight)
    memory(torch.ones(2, 9, 4), Context(tokens)).square().sum().backward()
    grad = memory.table.get_parameter("weight").grad
    assert grad is not None
    assert set(grad._indices()[0].tolist()) == set(memory.rows(Context(tokens)).flatten().tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [((10, 6, "float16"), "'float16': use one of float32"), ((0, 6), "0 rows of 6"), ((6, 0), "6 rows of 0")],
    ids=str,
)
def test_settings_that_make_no_table_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        HostTable(*settings)
