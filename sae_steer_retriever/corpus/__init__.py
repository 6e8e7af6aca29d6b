"""Files and folders become passages."""
