"""The network as a small typed graph, and the way from a torch module to it."""
