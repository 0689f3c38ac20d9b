"""Architectures as data, mechanisms as modules, one layer loop."""
