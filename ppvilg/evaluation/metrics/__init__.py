"""Numbers that say how good pictures are: feature statistics, distances between distributions, intervals."""
