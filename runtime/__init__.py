"""Requests, scheduling, caches, models, tokens and text: everything between a prompt and its tokens."""
