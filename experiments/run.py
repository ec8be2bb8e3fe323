"""One training run: planned to its budget, trained by Lightning, evaluated, billed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch

from experiments.arms import NO_STORE, SAME_TOKENS, WHOLE_CORPUS, Arm, arm_named
from experiments.controls import copying
from experiments.data import Windows, training_order
from experiments.data.module import Batches
from experiments.derived import Counts, derive, with_recency
from experiments.errors import RunError
from experiments.evaluation import Evaluation, Scored, evaluate, losses_of, read_bill
from experiments.frontier import budget_key
from experiments.ledger import Ledger
from experiments.neighborhood import Neighborhood, read_every
from experiments.provision import Provision
from experiments.revision import commit
from experiments.training import (
    any_neighbors,
    conclude,
    count_step,
    drop_checkpoint,
    logged,
    train,
    tune_allocator,
)
from experiments.workspace import Workspace
from mann import LanguageModule, Transformer
from mann.gates import watch_gates
from mann.knockout import shuffled_rows, without_memory
from mann.optim import parameter_roles
from mann.table_health import watch_tables
from retrieval import Neighbors, Source
from retrieval.runtime import threads

Progress = Callable[[str, float], None]


def quick_precision() -> str:
    """Mixed precision where the processor has instructions for it; elsewhere it is tens of times slower than none."""
    found = torch.cpu.get_capabilities()
    bf16 = any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bf16-mixed" if bf16 else "32-true"


DEFAULTS: dict[str, Any] = {
    "layers": 2,
    "heads": None,
    "batch": 8,
    "time": 256,
    "k": 16,
    "rates": {},
    "weight_decay": 0.0,
    "warmup": 0.03,
    "decay": 0.6,
    # Results of another precision are other results: a study that is resumed on another kind of processor starts anew.
    "precision": quick_precision(),
    "evaluation_tokens": 65_536,
    # Also report the model mixed with count n-grams over the same tokens, and over the whole corpus.
    "counts": False,
    # How many trials found these settings; told in the report, without effect.
    "trials": 0,
}

# Fields of a run that its row tells and that define nothing.
_TOLD = ("settings_from", "unasked")


@dataclass(frozen=True)
class Run:
    """Everything that defines one training run.

    Args:
        study: Name of the study it belongs to.
        arm: Name of the arm.
        regime: What its store may hold: ``"none"``, ``"same tokens"`` or ``"whole corpus"``.
        seed: Initial weights and order of the data.
        width: Width of the residual stream.
        budget: Training FLOPs, everything counted.
        settings: Changes to :data:`DEFAULTS`.
        settings_from: Where they came from, for the report: ``"own search"`` at this place, ``"another size"``,
            ``"another arm"`` or ``"defaults"``; empty where nobody says. It defines nothing, so :meth:`key` is without.
        unasked: Why its arm could not be asked whether it reads the future, for the report; empty where it was asked.
            It defines nothing either.
    """

    study: str
    arm: str
    regime: str
    seed: int
    width: int
    budget: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    settings_from: str = ""
    unasked: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Run:
        """From :meth:`to_dict`."""
        return cls(**fields)

    def key(self, corpus_fingerprint: str) -> str:
        """Sixteen hexadecimal digits that change when anything that defines the run changes."""
        defining = {name: value for name, value in self.to_dict().items() if name not in _TOLD}
        # Counts come on top of what was trained: :meth:`Results.missing` asks whether they are there.
        defining["settings"].pop("counts", None)
        text = json.dumps([defining, corpus_fingerprint], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def label(self) -> str:
        """For people."""
        store = "" if self.regime == NO_STORE else f" ({self.regime})"
        return f"{self.arm}{store}, seed {self.seed}, width {self.width}, {budget_key(self.budget)}"


def execute(
    run: Run, workspace: Workspace, progress: Progress = lambda stage, share: None
) -> list[dict[str, Any]]:
    """Train and evaluate one run.

    Args:
        run: What to do.
        workspace: Where.
        progress: Called with the stage and the share of it that is done.

    Returns:
        The run's row of ``results.jsonl`` first, then the rows derived from it (their ``parent`` is its key).

    Raises:
        RunError: If the settings or the budget make no run.
        FloatingPointError: If the loss is not finite.
    """
    tune_allocator()
    with threads(1):
        return _Execution(run, workspace, progress).rows()


class _Execution:
    def __init__(self, run: Run, workspace: Workspace, progress: Progress) -> None:
        unknown = sorted(set(run.settings) - set(DEFAULTS) - {"definition"})
        if unknown:
            raise RunError(f"unknown settings {unknown}: the settings are {', '.join(DEFAULTS)}")
        self.run = run
        self.workspace = workspace
        self.progress = progress
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.arm: Arm = arm_named(run.arm, workspace.arms)
        self.settings = DEFAULTS | dict(self.arm.settings) | dict(run.settings)
        progress("corpus", 0.0)
        self.corpus = workspace.corpus
        self.windows = Windows(self.corpus.train, self.settings["time"])
        self.order = training_order(len(self.windows), run.seed)
        self.held_out = {
            name: Evaluation.of(self.corpus, split, self.windows.length, self.settings["evaluation_tokens"])
            for name, split in self.corpus.splits.items()
            if name != "train"
        }
        self.seconds = {"train": 0.0, "build": 0.0, "search": 0.0, "evaluate": 0.0}

    def rows(self) -> list[dict[str, Any]]:
        """Do it."""
        batch = self.settings["batch"]
        # Only the size of a store is told by the backbone alone.
        plain = self._bill(self._network({})).flops // batch if self.arm.source is not None else 0
        provision = Provision(
            self.run,
            self.arm,
            self.settings,
            self.workspace,
            self.windows,
            self.order,
            plain,
            self.progress,
        )
        planned = provision.source()
        network = self._network(self._slots(planned))
        provision.every = read_every(network)
        sample = self._bill(network, source=planned)
        source, neighbors, n_windows = provision.provide(sample.flops // batch)
        if neighbors is not None:
            # A reader that computes each entry once takes less than was planned for neighbours that all differ.
            known = self._bill(self._network(self._slots(source)), neighbors=neighbors)
            if known.flops != sample.flops:
                sample = known
                source, neighbors, n_windows = provision.provide(sample.flops // batch)
        network = self._network(self._slots(source))
        module = self._module(network, n_windows // batch)
        with logged(self.run, self.workspace) as logger:
            self.seconds["train"] = train(
                self.run,
                self.workspace,
                module,
                self.settings,
                n_windows,
                neighbors,
                sample.flops,
                self.progress,
                logger,
            )
            rows = self._results(sample, network, source, neighbors, n_windows)
            if logger is not None:
                conclude(logger, rows[0])
        drop_checkpoint(self.run, self.workspace)
        return rows

    def _slots(self, source: Source | None) -> Mapping[str, Any]:
        return self.arm.slots(self.settings["layers"], source)

    def _network(self, slots: Mapping[str, Any]) -> Transformer:
        torch.manual_seed(self.run.seed)
        size = self.corpus.vocab_size, self.run.width, self.settings["layers"], self.settings["heads"]
        try:
            return Transformer(*size, **slots)
        except ValueError as error:
            raise RunError(f"{self.run.label()}: {error}") from error

    def _bill(
        self, network: Transformer, *, source: Source | None = None, neighbors: Neighborhood | None = None
    ) -> Ledger:
        """Of one step on the first batch without searching: with its neighbours or, before they are found, any."""
        size = self.settings["batch"]
        first = Batches(self.windows, self.order[:size], size, neighbors=neighbors)[0]
        if source is not None:
            first["neighbors"] = any_neighbors(first["tokens"], self.settings["k"], len(source.passages))
        return count_step(self._module(network, 1000), first, self.settings)

    def _module(self, network: Transformer, steps: int) -> LanguageModule:
        chosen = ("rates", "weight_decay", "warmup", "decay")
        return LanguageModule(network, steps, **{name: self.settings[name] for name in chosen})

    def _results(
        self,
        step: Ledger,
        network: Transformer,
        source: Source | None,
        neighbors: Neighborhood | None,
        n_windows: int,
    ) -> list[dict[str, Any]]:
        begin = time.perf_counter()
        evaluations = self._evaluations(source, read_every(network))
        with watch_tables(network) as tables, watch_gates(network) as gates:
            scored = {name: self._score(network, evaluation) for name, evaluation in evaluations.items()}
        row = self._row(step, network, neighbors, n_windows)
        row.update(self._read(network, evaluations["test"]))
        row["losses"] = losses_of(scored)
        probes: dict[str, Any] = {"copying": self._copying(network)}
        if tables:
            probes["tables"] = {name: table.result() for name, table in tables.items()}
            with shuffled_rows(network):
                probes["shuffled"] = self._score(network, evaluations["test"]).summary()
        row["probes"] = probes
        if gates:
            probes["gates"] = {name: gate.result() for name, gate in gates.items()}
        rows = [row]
        if len(network.memory):
            rows.append(
                derive(
                    row, f"{self.run.arm}, memory off", self.run.regime, self._knockout(network, evaluations)
                )
            )
        # Counts say what the next token is, not what is asked of a made-up task.
        if self.settings["counts"] and self.corpus.train.answers is None:
            rows += self._with_counts(row, scored, evaluations, n_windows)
        row["seconds"]["evaluate"] = time.perf_counter() - begin
        # Without one of them the run is not whole.
        row["derived"] = len(rows) - 1
        return rows

    def _evaluations(self, source: Source | None, every: int) -> dict[str, Evaluation]:
        if source is None:
            return self.held_out
        found = {}
        for name, evaluation in self.held_out.items():
            # Held-out documents are in no store, so there is nothing to exclude.
            where = evaluation.windows, evaluation.chosen, name, self.settings["k"]
            near = self.workspace.neighborhood(source, *where, exclude=False, every=every)
            near.prepare(
                len(evaluation.chosen), lambda share: self.progress("neighbours of held-out text", share)
            )
            found[name] = replace(evaluation, neighbors=near)
        return found

    def _score(self, network: Transformer, evaluation: Evaluation, forget: bool = False) -> Scored:
        self.progress("evaluate", 0.0)
        return evaluate(network, evaluation, forget=forget, autocast=self._autocast)

    @property
    def _autocast(self) -> bool:
        return self.settings["precision"] == "bf16-mixed"

    def _copying(self, network: Transformer) -> dict[str, float]:
        def nll(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            # Random strings have no neighbours; a search for them would measure the store, not copying.
            nothing = Neighbors.none(*tokens.shape, self.settings["k"])
            with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
                return network.loss(tokens, targets, neighbors=nothing)

        return copying(nll, self.corpus.vocab_size).to_dict()

    def _knockout(self, network: Transformer, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
        with without_memory(network):
            # How arms do on sources never trained on is asked of whole arms.
            asked = {name: split for name, split in evaluations.items() if name != "heldout"}
            return losses_of({name: self._score(network, e, forget=True) for name, e in asked.items()})

    def _with_counts(
        self,
        row: dict[str, Any],
        scored: Mapping[str, Scored],
        evaluations: Mapping[str, Evaluation],
        n_windows: int,
    ) -> list[dict[str, Any]]:
        self.progress("counts", 0.0)
        same = self.windows.passages(self.order[:n_windows], self.corpus.vocab_size)
        stores = {SAME_TOKENS: same, WHOLE_CORPUS: self.corpus.train.passages(self.corpus.vocab_size)}
        if self.run.regime != NO_STORE:
            stores = {self.run.regime: stores[self.run.regime]}
        rows = []
        for regime, passages in stores.items():
            counts = Counts(self.corpus, passages, evaluations, self.workspace.cache)
            both = counts.mixed(scored)
            rows.append(counts.row(row, both, regime))
            if regime == SAME_TOKENS:
                rows.append(with_recency(rows[-1], both, evaluations, self.corpus.vocab_size))
        return rows

    def _read(self, network: Transformer, evaluation: Evaluation) -> dict[str, Any]:
        batch = next(evaluation.batches())
        ledger = read_bill(network, batch, autocast=self._autocast)
        tokens = batch["tokens"].numel()
        flops, moved = ledger.flops / tokens, ledger.bytes / tokens
        if evaluation.neighbors is not None:
            searched = evaluation.neighbors.work(len(evaluation.chosen))
            flops += searched["flops"] / (len(evaluation.chosen) * evaluation.windows.length)
            moved += searched["bytes"] / (len(evaluation.chosen) * evaluation.windows.length)
        return {"read_flops": flops, "read_bytes": moved}

    def _row(
        self, step: Ledger, network: Transformer, neighbors: Neighborhood | None, n_windows: int
    ) -> dict[str, Any]:
        steps = n_windows // self.settings["batch"]
        flops = {phase: step.by_phase.get(phase, 0) * steps for phase in ("forward", "backward", "optimizer")}
        moved = {phase: step.bytes_by_phase.get(phase, 0) * steps for phase in flops}
        build: dict[str, int] = {}
        search: dict[str, int] = {}
        flops |= {"search": 0, "build": 0}
        moved |= {"search": 0, "build": 0}
        if neighbors is not None:
            search = neighbors.work(n_windows)
            flops["search"], moved["search"] = search["flops"], search["bytes"]
            self.seconds["search"] = neighbors.seconds(n_windows)
            bill = neighbors.store_bill()
            build = bill["flops"]
            flops["build"], moved["build"] = sum(build.values()), sum(bill["bytes"].values())
            self.seconds["build"] = bill["seconds"]
        roles = parameter_roles(network)
        count = {role: sum(p.numel() for p in params) for role, params in roles.items()}
        total = sum(count.values())
        return {
            **self.run.to_dict(),
            "run": self.run.key(self.corpus.fingerprint),
            "control": self.arm.control,
            "layers": self.settings["layers"],
            "tokens": n_windows * self.settings["time"],
            "store_entries": 0 if neighbors is None else neighbors.source.passages.n_entries,
            "steps": steps,
            "params": {"total": total, "active": total - count["table"], "table": count["table"]},
            "flops": flops,
            "train_flops": sum(flops.values()),
            # A store has no other arithmetic than products and look-ups: all of it counts under either convention.
            "matmul_flops": step.matmul_flops * steps + flops["search"] + flops["build"],
            "build": build,
            "search": search,
            "bytes": moved,
            "train_bytes": sum(moved.values()),
            "seconds": self.seconds,
            "train_seconds": sum(self.seconds[name] for name in ("train", "build", "search")),
            "by_operator": {name: flops * steps for name, flops in step.by_operator.items()},
            "by_module": {name: flops * steps for name, flops in step.by_module.items()},
            "parent": None,
            "settings": self.settings,
            "code": self.workspace.revision,
            "git": commit(),
            "versions": self.workspace.versions,
            "corpus": self.corpus.fingerprint,
            "started": self.started,
        }
