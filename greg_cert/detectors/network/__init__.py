"""Detectors that run the network: on its feature maps, by its gradients, or on moved images."""
