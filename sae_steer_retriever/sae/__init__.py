"""The dictionary: `TopKSAE` (Eq. 1), its codes, configuration and files, and the bundled SAE."""
