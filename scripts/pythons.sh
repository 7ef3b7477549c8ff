#!/bin/sh
# Prints the Python interpreters that harcache can use here, one a line, the newest first.
for version in 3.13 3.12 3.11; do
  # A name on the path need not run: pyenv has names for versions that are not enabled. Its variable enables
  # one, and no other interpreter reads it. Debian's Python without python3-venv lacks ensurepip.
  PYENV_VERSION=$version "python$version" -c 'import ensurepip, sys; print(sys.executable)' 2>/dev/null
done
true
