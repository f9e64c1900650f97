"""Denoisers on token sets, and the folders that hold trained ones."""
