"""Who may ask what: owners, what the service signs, and what every request must pass."""
