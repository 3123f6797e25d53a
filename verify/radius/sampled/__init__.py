"""Radii from samples: randomised smoothing, which proves, and CLEVER, which estimates."""
