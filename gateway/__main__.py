"""`python -m gateway` is `dvn`."""

from gateway.cli.main import main

main()
