"""What samples are worth: features and the distances between them."""
