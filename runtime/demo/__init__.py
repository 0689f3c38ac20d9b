"""The demo model's workshop: the text it learns from, its trainer, its evaluator and its export."""
