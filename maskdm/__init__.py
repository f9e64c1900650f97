"""Masked pretraining of image diffusion models: the library behind the pipeline."""
