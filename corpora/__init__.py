"""Where a ratings.csv comes from: a simulation, or a published data set."""
