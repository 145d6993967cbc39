"""What a person looks at.

Public: `report.training_report`, `model_card.model_card`, `results.write_results`, `figures.gallery`.
"""
