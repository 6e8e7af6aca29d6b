"""One query on its way to hits."""
