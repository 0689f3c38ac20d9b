"""The HTTP server and the `sirocco` command."""
