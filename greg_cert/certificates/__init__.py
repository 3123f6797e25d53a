"""The certificates of a verification: the format, and what can be read and counted; no torch."""
