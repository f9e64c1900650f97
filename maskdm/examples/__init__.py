"""The method in miniature."""
