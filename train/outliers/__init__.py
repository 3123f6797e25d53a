"""Which auxiliary outliers are trained on."""
