"""What a GPU does with training: its exactness, its speed, and where the time goes."""
