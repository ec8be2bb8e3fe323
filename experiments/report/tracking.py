"""The report in Weights & Biases, beside the runs it is made from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.errors import ResultsError
from experiments.report.content import tables
from experiments.report.figure import draw, to_bytes
from experiments.report.findings import Findings
from experiments.report.long import COLUMNS, lines
from experiments.report.page import page
from experiments.report.profiles import draw_profiles

if TYPE_CHECKING:
    import wandb


def log_report(run: wandb.Run, findings: Findings) -> None:
    """Log the tables of a report, every number in long form, the figures and the page to a run.

    Args:
        run: an open run.
        findings: what the report says.
    """
    import wandb
    from PIL import Image

    logged: dict[str, Any] = {
        f"report/{table.title.partition(':')[0]}": wandb.Table(
            columns=list(table.columns), data=[[cell.text for cell in row] for row in table.rows]
        )
        for table in tables(findings.summary)
    }
    logged["report/numbers"] = wandb.Table(
        columns=list(COLUMNS),
        data=[[line[column] for column in COLUMNS] for line in lines(findings.summary)],
    )
    figures = {
        "frontier": (draw, findings.summary["answer"]),
        "profiles": (draw_profiles, "IsoFLOP profiles"),
    }
    for name, (drawn, caption) in figures.items():
        with Image.open(io.BytesIO(to_bytes(drawn(findings.summary), "png"))) as picture:
            logged[f"report/{name}"] = wandb.Image(picture, caption=caption)
    logged["report/page"] = wandb.Html(page(findings), inject=False)
    run.log(logged)
    run.summary["answer"] = findings.summary["answer"]


def track(findings: Findings, mode: Literal["offline", "online"], folder: Path) -> None:
    """Log a report to a run of its own: job type ``report``, in the group of its study.

    Args:
        findings: what the report says.
        mode: ``offline`` needs no account.
        folder: where W&B keeps its files, in a folder of its own.

    Raises:
        ResultsError: if W&B refuses, for want of an account or of a network.
    """
    import wandb

    place = folder / "wandb"
    place.mkdir(parents=True, exist_ok=True)
    summary = findings.summary
    try:
        run = wandb.init(
            project="mnemograph",
            group=summary["study"],
            job_type="report",
            name=f"report on {summary['study']}",
            mode=mode,
            dir=str(place),
            config={
                "corpus": summary["fingerprint"],
                "code": summary["revisions"],
                "command": findings.command,
            },
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off"),
        )
        with run:
            log_report(run, findings)
    except wandb.Error as error:
        raise ResultsError(
            f"W&B refused the report ({' '.join(str(error).split())}): type `wandb login`, or give --wandb offline"
        ) from error
