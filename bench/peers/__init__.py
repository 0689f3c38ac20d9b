"""`sirocco bench peers`: ours and other engines on the same generated model, side by side."""
