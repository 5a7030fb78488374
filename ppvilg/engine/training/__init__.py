"""The loop of every stage and what it changes: weights, optimizer, averages, loss scale."""
