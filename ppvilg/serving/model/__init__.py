"""What may be asked of the served model, and what it says of itself; loads no Paddle."""
