"""Every image of an archive gets one published row.

Public: `job.score`, `withdrawal.forget`.
"""
