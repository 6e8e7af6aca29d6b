"""The explorer: a page on this machine to look at features, turn them like knobs and watch the ranking move."""
