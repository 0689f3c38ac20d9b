"""Tokens to text and back: tokenizers, detokenisation, chat templates, tool-call parsing."""
