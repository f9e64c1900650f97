"""Training: one loop for both phases, and all that a step is made of."""
