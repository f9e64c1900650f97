"""How fast it is, against what this machine could do."""
