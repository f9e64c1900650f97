"""Denoisers on token sets."""
