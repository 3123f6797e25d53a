"""Detectors that read penultimate features and the head, and nothing else of the network."""
