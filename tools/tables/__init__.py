"""The tables of README.md and docs/ that are computed."""
