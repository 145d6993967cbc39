"""How good predictions are, and how sure that is.

Public: `classification.classification_metrics`, `spread.bootstrap`, `calibration.risk_coverage`.
"""
