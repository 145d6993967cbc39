"""From labelled images to a model.

Public: `job.train`, `dataset.list_labelled`, `embedding.Embedder`, `head.fit_head`, `splits.hold_out`,
`thresholds.fit_triage`.
"""
