"""A scoring run as a scheduler sees it: tonight's input, a deadline, one at a time, and an end that programs read.

Public: `job.night`, `config.NightlyConfig`, `record.Record`.
"""
