"""`python -m sirocco` is the `sirocco` command."""

from sirocco.api.cli.main import main

main()
