"""How much of a retrieval an SAE keeps: retrieval sets, their figures, and figures without judgments."""
