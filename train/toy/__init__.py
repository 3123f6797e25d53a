"""The demonstration in the plane."""
