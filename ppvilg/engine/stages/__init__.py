"""What is trained: the autoencoder, the base denoiser and the experts, as the loop sees them."""
