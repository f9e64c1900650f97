"""What makes pages: the report, the tables of the documentation, the page of DVC's plots."""
