"""From noise to images: solvers, the sampler, a trained model in Python."""
