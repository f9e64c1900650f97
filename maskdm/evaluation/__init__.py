"""How good samples are: features and the distances between them."""
