"""What a recipe takes before it is started: networks without memory, a rank's memory, a cluster's time."""
