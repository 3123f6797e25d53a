"""The names of the format: files of a verification folder, statuses of a row, decisions."""

from __future__ import annotations

CERTIFICATES = "certificates.parquet"
"""A row a run and ID test sample; of OOD samples where only these were verified."""
OOD_CERTIFICATES = "ood_certificates.parquet"
"""A row a run and sample of an OOD test set."""
OOD_SCORES = "ood_scores.parquet"
"""A row a run, OOD sample and radius: bounds and attacks of its score."""
SCORES = "scores.parquet"
"""A row a run and sample of all test sets, verified or not: its score."""
SUMMARY = "summary.json"
"""Settings, and what is counted of the rows."""
PICTURES = "pictures.npz"
"""The samples that the report shows, each with the nearest attack."""

CERTIFIED, REJECTED, UNDECIDED, CONTRADICTED = "certified", "rejected", "undecided", "contradicted"
STATUSES = (CERTIFIED, REJECTED, UNDECIDED, CONTRADICTED)
"""Of a row: proven; the clean sample is on the wrong side already; nothing could be proven; an
attack succeeded inside a proven radius."""
