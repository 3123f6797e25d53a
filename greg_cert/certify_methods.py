"""Names of the methods that `greg_cert.verify.certify` knows, without importing it."""

from __future__ import annotations

METHODS = ("crown", "crown-ibp", "lipschitz", "best")
