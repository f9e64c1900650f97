"""The formulas: paths, predictions, the loss, masks, tokens, random numbers. Pure functions."""
