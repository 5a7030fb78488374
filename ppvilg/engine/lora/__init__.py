"""Stage "lora": an adapter of a finished model is trained, the model stays as it is."""
