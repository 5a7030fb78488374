"""Ranks: their layout on the axes data, sharding and expert, what they say to each other, and the sharded optimizer."""
