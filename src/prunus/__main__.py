"""`python -m prunus` is `prunus`."""

from prunus.cli import main

main()
