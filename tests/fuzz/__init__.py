"""Fuzzing of everything that layerport reads from strangers: see `run`."""
