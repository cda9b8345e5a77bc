"""Where a ratings.csv comes from: a simulation, a published data set, or a test's export."""
