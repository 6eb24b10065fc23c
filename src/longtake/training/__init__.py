"""Training: the pocket model's autoencoder, denoiser and own-rollout stages."""
