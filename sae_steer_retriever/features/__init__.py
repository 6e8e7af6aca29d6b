"""The catalog: features, families, evidence, calibration, names and annotations."""
