"""What the pipeline survives."""
