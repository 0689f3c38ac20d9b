"""Measuring engines and servers."""
