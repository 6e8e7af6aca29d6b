"""Operations, edits, steerings and policies, and the plan for one query."""
