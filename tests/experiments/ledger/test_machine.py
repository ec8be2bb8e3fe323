from pathlib import Path

import pytest

import experiments.ledger.machine
from experiments.ledger.machine import Machine

SPAN = 1_000_000_000


def zone(folder: Path, place: str, name: str, energy: int) -> Path:
    path = folder / place
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{SPAN}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    return path / "energy_uj"


def test_packages_and_memory_are_added_and_what_contains_them_is_left_out(tmp_path: Path) -> None:
    counted = [
        zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000),
        zone(tmp_path, "intel-rapl:1", "package-1", 100),
        zone(tmp_path, "intel-rapl:0:1", "dram", 7),
    ]
    left_out = [
        zone(tmp_path, "intel-rapl:0:0", "core", 0),
        zone(tmp_path, "intel-rapl:2", "psys", 0),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    with Machine(tmp_path) as machine:
        for path in counted:
            path.write_text(str(int(path.read_text()) + 2_500_000))
        for path in left_out:
            path.write_text("900000000")
    assert machine.source == "rapl"
    assert machine.joules == pytest.approx(7.5)
    assert machine.seconds > 0


def test_a_counter_that_runs_over_goes_on(tmp_path: Path) -> None:
    energy = zone(tmp_path, "intel-rapl:0", "package-0", SPAN - 999_999)
    with Machine(tmp_path) as machine:
        energy.write_text("1000000")
        machine.read()
        assert machine.joules == pytest.approx(2.0)
        energy.write_text("1500000")
    assert machine.joules == pytest.approx(2.5)


def test_energy_between_blocks_is_not_counted(tmp_path: Path) -> None:
    energy = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    machine = Machine(tmp_path)
    for end in (3_000_000, 11_000_000):
        energy.write_text(str(end - 1_000_000))
        with machine:
            energy.write_text(str(end))
    assert machine.joules == pytest.approx(2.0)


def test_without_counters_joules_are_unknown_not_zero(tmp_path: Path) -> None:
    with Machine(tmp_path / "nowhere") as machine:
        pass
    assert machine.to_dict() == {"seconds": machine.seconds, "joules": None, "joules_source": "unavailable"}


def test_a_counter_that_disappears_ends_no_training(tmp_path: Path) -> None:
    energy = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with Machine(tmp_path) as machine:
        energy.unlink()
    assert machine.joules is None
    assert "energy_uj" in machine.source


def test_counters_for_root_only_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    energy = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def refuse(path: Path, *args: object) -> str:
        if path == energy:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    # Tests may run as root, whom no file refuses.
    monkeypatch.setattr(Path, "read_text", refuse)
    machine = Machine(tmp_path)
    assert machine.joules is None
    assert "energy_uj may be read by root only" in machine.source


def test_a_resumed_run_adds_up_and_never_passes_a_part_for_the_whole(tmp_path: Path) -> None:
    energy = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    machine = Machine(tmp_path)
    machine.resume({"seconds": 10.0, "joules": 4.0, "joules_source": "rapl"})
    with machine:
        energy.write_text("1000000")
    assert machine.joules == pytest.approx(5.0)
    assert machine.seconds > 10
    partly = Machine(tmp_path)
    partly.resume({"seconds": 10.0, "joules": None, "joules_source": "unavailable"})
    with partly:
        energy.write_text("2000000")
    assert partly.joules is None
    assert partly.source.startswith("unavailable (an earlier part")


def test_gpus_are_counted_where_their_library_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        uuid = "abc"

    class Library:
        millijoules = 1000

        @staticmethod
        def nvmlInit() -> None: ...

        @staticmethod
        def nvmlDeviceGetHandleByUUID(name: str) -> str:
            assert name == "GPU-abc"
            return name

        @classmethod
        def nvmlDeviceGetTotalEnergyConsumption(cls, handle: str) -> int:
            return cls.millijoules

    cuda = experiments.ledger.machine.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda, "get_device_properties", lambda number: Properties)
    monkeypatch.setattr(experiments.ledger.machine, "import_module", lambda name: Library)
    energy = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with Machine(tmp_path) as machine:
        Library.millijoules = 3500
        energy.write_text("1000000")
    assert machine.source == "rapl+nvml"
    assert machine.joules == pytest.approx(3.5)
