"""`python -m ayaedge` is the command line."""

from ayaedge.cli import main

main()
