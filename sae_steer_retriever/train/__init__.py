"""Fit a TopK SAE on a corpus: `python -m sae_steer_retriever.train --corpus ./docs --output ./sae`."""
