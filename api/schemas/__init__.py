"""Wire structs without logic."""
