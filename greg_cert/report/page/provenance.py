"""What made the numbers of a page: the verification, and the training of each run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from greg_cert.certificates.format import CERTIFICATES
from greg_cert.certificates.method_columns import held_methods
from greg_cert.certificates.methods import PROOFS, STATUS
from greg_cert.certificates.results import Results
from greg_cert.config.yaml_text import load_yaml
from greg_cert.report.wording import norm_name, one_line, score_names

UNKNOWN = "not recorded"


def verification_facts(results: Results) -> dict[str, Any]:
    """Facts by name, None where not recorded, and the settings as text."""
    summary = results.summary
    record = summary.provenance
    python = None if record.python is None else f"Python {record.python}"
    seconds = {run: found.seconds for run, found in summary.runs.items()}
    settings = {**_mapping(record.settings), "selection": record.selection}
    return {
        "facts": {
            "Command": record.command,
            "Created": record.created or UNKNOWN,
            "Git commit": record.git_commit or UNKNOWN,
            "Seed": None if record.seed is None else str(record.seed),
            "Device": _device(record.device, record.processes),
            "System": ", ".join(x for x in (python, record.platform) if x) or UNKNOWN,
            "Versions": _versions(record.versions),
            "Norm": norm_name(summary.norm),
            "Score": score_names(summary),
            **_methods(results),
            CERTIFICATES: f"sha256 {results.fingerprint}",
            "Verification time": ", ".join(
                f"{one_line(run)} {UNKNOWN if s is None else f'{s:.1f} s'}"
                for run, s in seconds.items()
            ),
        },
        "settings": _yaml(settings) if record.settings else "",
    }


def training_facts(results: Results, run: str) -> dict[str, Any]:
    """How one run was made, as far as its folder said; its config and manifest as text."""
    record = results.summary.provenance
    manifest, config = _mapping(_mapping(record.runs).get(run)), record.configs.get(run)
    sizes = _mapping(manifest.get("split_sizes"))
    sets = {
        f"{name}, {_said(sizes.get(name))} images": str(digest)
        for name, digest in _mapping(manifest.get("data")).items()
    }
    command = manifest.get("command")
    facts: dict[str, str | dict[str, str] | None] = {
        "Folder": record.folders.get(run),
        "Command": None if command is None else str(command),
        "Created": _said(manifest.get("created")),
        "Git commit": _said(manifest.get("git_commit")),
        "Seeds": _seeds(config, manifest),
        "Device": _device(manifest.get("device"), manifest.get("processes")),
        "Versions": _versions(_mapping(manifest.get("versions"))),
        "Data, SHA-256": sets or None,
    }
    if weights := _mapping(record.weights).get(run):
        facts["Weights, SHA-256"] = _said(weights)
    if stages := manifest.get("stages"):
        facts["Stages, as run"] = "; ".join(map(_stage, stages)) if isinstance(stages, list) else ""
    if resumed := manifest.get("resumed"):
        facts["Resumed"] = f"{len(resumed) if isinstance(resumed, list) else _said(resumed)} times"
    return {"facts": facts, "config": config, "manifest": _yaml(manifest) if manifest else ""}


def _yaml(value: object) -> str:
    """Plain values in the form that configs have."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def _said(value: object) -> str:
    return UNKNOWN if value is None else one_line(str(value))


def _device(device: object, processes: object) -> str:
    more = "" if processes in (None, 1) else f", {_said(processes)} processes"
    return _said(device) + more


def _versions(versions: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {_said(v)}" for name, v in sorted(versions.items())) or UNKNOWN


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _stage(stage: object) -> str:
    values = _mapping(stage)
    words = [f"{key} {_said(value)}" for key, value in values.items() if value is not None]
    return ", ".join(words) or UNKNOWN


def _seeds(config: str | None, manifest: Mapping[str, Any]) -> str:
    """Every seed of the config by its place there; the manifest's own where there is no config."""
    try:
        parsed = load_yaml(config or "")
    except yaml.YAMLError:
        parsed = None
    found = [f"{place} = {seed}" for place, seed in _places(parsed)]
    if not found and "seed" in manifest:
        found = [f"seed = {_said(manifest['seed'])}"]
    return ", ".join(map(one_line, found)) or UNKNOWN


def _places(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Where a config names a seed: `data.ood.0.seed`, and what it is."""
    parts = value.items() if isinstance(value, dict) else ()
    for key, part in enumerate(value) if isinstance(value, list) else parts:
        if key == "seed" and part is not None:
            yield f"{place}seed", json.dumps(part, default=str)
        else:
            yield from _places(part, f"{place}{key}.")


def _methods(results: Results) -> dict[str, str]:
    """What the tables hold, which proofs the certified radius is the largest of, and the audit.

    More is computed than what was asked for, and what proves nothing has an engine of no kind.
    """
    summary = results.summary
    held = held_methods([results.frame] if results.ood is None else [results.frame, results.ood])
    certified = [method for method in PROOFS if method in summary.methods]
    shown = [method for method in STATUS if method in (*held, *certified)]
    facts = {"Methods": ", ".join(f"{method} ({STATUS[method]})" for method in shown)}
    if certified:
        facts["Certified radius"] = f"the largest of {', '.join(certified)}"
    if summary.engine is not None and any(method in PROOFS for method in shown):
        facts["Engine"] = one_line(summary.engine)
    if (s := summary.smoothing) is not None:
        facts["Smoothing"] = f"\u03c3 = {s.sigma:g}, n = {s.n}, \u03b1 = {s.alpha:g}"
    audits = {"": summary.audit} | {f"{run}: ": r.audit for run, r in summary.runs.items()}
    lines = []
    for run, audit in audits.items():
        if audit is None:
            continue
        attacks = audit.attacks
        listed = ", ".join(attacks) if isinstance(attacks, list) else attacks
        parts = {"attacks": listed, "steps": audit.steps, "restarts": audit.restarts}
        parts["violations"] = audit.violations
        words = [f"{key} {value}" for key, value in parts.items() if value is not None]
        lines.append(one_line(run + ", ".join(words)))
    return facts | ({"Audit": "; ".join(lines)} if lines else {})
