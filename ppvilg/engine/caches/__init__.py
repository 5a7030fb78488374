"""What is found once per data set and kept in the output: latents of pictures, words of captions."""
