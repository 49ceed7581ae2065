#!/bin/sh
# Checks the relative links and anchors of all Markdown files, and that docs/problems.md describes every problem code. Needs
# no network.
set -eu
exec /usr/bin/python3 "$(dirname "$0")/check-links.py"
