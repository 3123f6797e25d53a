"""`greg-cert doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from greg_cert.cli import screen

_LOOKED_AT, _TRIED = 32, 3


def doctor(
    run: Annotated[Path, typer.Argument(help="Run folder, or YAML file of a model.")],
    seconds: Annotated[
        float, typer.Option(min=0.0, help="What is not expected to fit into these is left out.")
    ] = 12.0,
    trust: screen.Trust = None,
    json: screen.Json = False,
    quiet: screen.Quiet = False,
) -> None:
    """Show how a run's model looks to the verifier, layer by layer, before hours are spent.

    Says which engine takes each layer, how steep the layers and the score are at most, what each
    method costs on this network, and how far it reached on three test samples. A layer that cannot
    be bounded soundly is named, and the exit code is 2.

    Example: greg-cert doctor runs/greg+
    """
    screen.speak(json=json, quiet=quiet)
    from greg_cert.errors import UnsupportedModelError
    from greg_cert.runs.subjects import open_subject
    from greg_cert.verify.run.diagnose import diagnosed
    from greg_cert.verify.run.method_trials import duration

    folder = open_subject(run, trust=trust)
    with screen.waiting(f"read {run}"):
        model = folder.load_model()
        sizes = folder.manifest["model"]
        shape = (sizes["in_channels"], sizes["image_size"], sizes["image_size"])
        screen.doing("read the data and choose samples")
        samples = _samples(folder, model)
    pieces = diagnosed(model, shape, samples=samples, seconds=seconds, tell=screen.doing)
    with screen.waiting("trace the network"):
        found = next(pieces)
    if found.layers:
        screen.out(_layers(found, f"{folder.config.title}: {folder.config.network}"))
    screen.plain(
        *(f"engine {name}: {state}" for name, state in found.engines.items()),
        *(f"method {name}: {by}" for name, by in found.methods.items()),
    )
    while found.unfinished:
        with screen.waiting(f"look at {run}"):
            before, found = found, next(pieces)
        if not before.trials and not found.trials and found.unfinished:
            screen.out(_norms(found))
            screen.plain(f"tried on {samples.what if samples else 'made-up images'}:")
        screen.plain(*map(_trial, found.trials[len(before.trials) :]))
    screen.record({"schema": 1, "run": run, **asdict(found)})
    if found.refusal is not None:
        raise UnsupportedModelError(
            f"{found.refusal}. Of the methods above smoothing alone proves anything for it"
        )
    activations = sum("ReLU" in layer.kind or "smooth" in layer.kind for layer in found.layers)
    screen.plain(
        f"{activations} activation layers, {found.neurons} neurons; one sample takes about "
        f"{found.bytes_a_sample / 2**20:.1f} MiB besides coefficients"
    )
    if found.norms_left:
        screen.plain(
            f"norms of the other layers take about {duration(found.norms_left)}, once a model: "
            f"--seconds {3 * (seconds + found.norms_left):.0f} shows them"
        )
    else:
        screen.plain(
            f"the energy is nowhere steeper than {found.lipschitz:.4g} (proven): a radius is at "
            "least its distance to the threshold divided by that"
        )
    screen.plain("every layer can be bounded soundly")


def _samples(folder: Any, model: Any) -> Any:
    """Three accepted test samples and nearly the threshold, or None where the data are not here."""
    import torch

    from greg_cert.errors import GregCertError
    from greg_cert.metrics import threshold_at_tpr
    from greg_cert.runs.inference import evaluation_copy
    from greg_cert.scores import score_of
    from greg_cert.verify.run.method_trials import Samples

    try:
        splits = folder.load_data()
    except GregCertError as error:
        screen.note(f"no samples: {error}")
        return None
    twin, value = evaluation_copy(model, torch.float32), score_of(folder.config.score)

    def scored(images: Any) -> tuple[Any, Any]:
        x = images.pixels(torch.arange(min(len(images), _LOOKED_AT)))
        with torch.no_grad():
            return x, value(twin(x))

    threshold = threshold_at_tpr(scored(splits.calibration)[1])
    x, scores = scored(splits.test)
    chosen = scores.argsort()[: max(1, int((scores <= threshold).sum()))]
    chosen = chosen[:: max(1, len(chosen) // _TRIED)][:_TRIED]
    what = f"{len(chosen)} test samples, threshold by {_LOOKED_AT} of the calibration split"
    return Samples(x[chosen].double(), threshold, folder.config.score, what)


def _trial(trial: Any) -> str:
    from greg_cert.verify.run.method_trials import duration

    if trial.why is not None:
        return f"  {trial.method}: not tried, {trial.why}"
    return (
        f"  {trial.method}: {duration(trial.seconds)} a sample, median radius {trial.radius:.4g} "
        f"of {trial.samples}"
    )


def _layers(found: Any, title: str) -> Any:
    from rich.table import Table

    columns = ("layer", "bounded as", "reads", "output", "native", "auto-lirpa")
    table = Table(*columns, title=f"{title}, as it is bounded")
    for layer in found.layers:
        table.add_row(
            layer.name,
            layer.kind,
            ", ".join(layer.reads),
            "x".join(map(str, layer.shape)),
            layer.engines["native"],
            layer.engines["auto-lirpa"],
        )
    return table


def _norms(found: Any) -> Any:
    from rich.table import Column, Table

    numbers = (Column(name, justify="right") for name in ("at most (proven)", "power iteration"))
    title = "operator norms, and the Lipschitz constant of the energy"
    table = Table("layer", *numbers, title=title)
    for layer in found.layers:
        if layer.norm is not None:
            below = "" if layer.norm_from_below is None else f"{layer.norm_from_below:.5g}"
            table.add_row(layer.name, f"{layer.norm:.5g}", below)
    if not found.norms_left:
        table.add_row("the whole", f"{found.lipschitz:.5g}", "")
    return table
