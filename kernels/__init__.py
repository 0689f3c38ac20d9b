"""Operators: tensors in, tensors out. One file per family; each holds the torch definition, which is the reference."""
