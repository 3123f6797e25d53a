"""A set of samples under trained runs: chosen, computed, kept and read."""
