"""Triton kernels and their launchers, a file per operator family: faster ways to the torch definitions' numbers."""
