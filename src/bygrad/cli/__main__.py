"""`python -m bygrad.cli`."""

from . import main

main()
