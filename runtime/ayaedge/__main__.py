"""`python -m ayaedge` is the command line."""

from ayaedge.cli.main import main

main()
