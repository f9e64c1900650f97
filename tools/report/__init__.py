"""The report: evidence and runs of the pipeline as one page."""
