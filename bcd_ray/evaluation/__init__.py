"""What a model, or the settings that make one, can be expected to do.

Public: `job.evaluate`, `cross_validation.validate`, `explaining.explain`.
"""
