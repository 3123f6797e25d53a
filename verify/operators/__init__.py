"""Norms of single affine layers, proven."""
