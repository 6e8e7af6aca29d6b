"""Measures an SAE: fidelity on judged queries, agreement on documents without judgments, meaning of its features."""
