"""`sirocco bench moe`: a mixture of experts in this engine and in transformers, side by side."""
