"""What of an archive is published: by which run, from which plan, and which rows hold.

Public: `ledger.Ledger`, `state.State`, `schema.COLUMNS`, `verification.verify`.
"""
