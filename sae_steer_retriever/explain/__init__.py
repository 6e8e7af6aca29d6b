"""Attribution of a score, and how it is told."""
