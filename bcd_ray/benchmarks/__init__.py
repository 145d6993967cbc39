"""What can be claimed, measured side by side.

Public: `speed.compare_speed`, `turns.compare_in_turns`, `growth.growth`, `training.training_cost`.
"""
