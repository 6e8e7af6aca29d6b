"""What the latents of an SAE mean: their top passages, keyword labels and label scores."""
