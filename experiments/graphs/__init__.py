"""Published results on graphs, run again with everything counted: what is run, one run, its control, the tables."""
