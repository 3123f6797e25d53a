"""`greg-cert evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from greg_cert.cli import screen


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Run folders to evaluate.")],
    tpr: Annotated[float, typer.Option(help="Share of the calibration split to accept.")] = 0.95,
) -> None:
    """Accuracy and detection metrics of trained runs on every OOD test set.

    FPR95 is the share of OOD samples accepted where 95 % of ID samples are; the last column is
    OpenOOD's direction, ID samples rejected where 95 % of OOD samples are.

    Example: greg-cert evaluate runs/energy runs/greg+
    """
    from rich.table import Table

    from greg_cert.evaluation import evaluate_model
    from greg_cert.records import RunFolder
    from greg_cert.verify.paired import common_data

    for path in runs:
        run = RunFolder(path)
        score = run.config.score
        found = evaluate_model(run.load_model(), common_data([run]), score=score, tpr=tpr)
        table = Table(
            title=f"{run.config.title} ({score}): ID accuracy {found.id_accuracy:.4f}, "
            f"threshold {found.threshold:.4f} (accepts {found.test_tpr:.1%} of the test split)"
        )
        metrics = {
            "fpr95": "FPR95 (ID recall)",
            "auroc": "AUROC",
            "aupr_in": "AUPR in",
            "aupr_out": "AUPR out",
            "fpr95_ood_recall": "FPR95 (OOD recall)",
        }
        table.add_column("OOD set")
        for title in metrics.values():
            table.add_column(title, justify="right")
        for name, values in found.ood.items():
            table.add_row(name, *(f"{values[m]:.4f}" for m in metrics))
        if found.ood:
            table.add_section()
            table.add_row("mean", *(f"{found.mean(m):.4f}" for m in metrics))
        screen.out(table)
