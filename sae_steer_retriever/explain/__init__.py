"""Explanations: the parts of a hit's score, as text, a table or HTML."""
