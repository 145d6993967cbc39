"""Every image of an archive gets one published row.

Public: `job.score`, `verification.verify`, `ledger.Ledger`, `schema.COLUMNS`.
"""
