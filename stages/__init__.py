"""The stages of the pipeline: one file, one command each."""
