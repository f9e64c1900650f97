"""Checkpoints: kept, found again, copied elsewhere. Knows nothing of training."""
