"""What runs in the process of one engine: scripts for any Python, free of the rest of this package."""
