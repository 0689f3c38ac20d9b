"""The `sirocco` command, a file per verb."""
