"""Scripts for the process of one engine (`bench/peers/drivers/host.py`) that make a mixture without any file."""
