"""`python -m harcache`, where the command itself is not on the path."""

from harcache.cli import main

main(prog_name="python -m harcache")
