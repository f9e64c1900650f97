"""From images as they are found to the prepared set."""
