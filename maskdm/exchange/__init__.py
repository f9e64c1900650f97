"""Models from elsewhere and for elsewhere: others' layouts of weights, and diffusers."""
