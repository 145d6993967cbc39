"""The network, what it runs on, and what a bundle decides with.

Public: `bundle.load_bundle`, `choice.open_engine`, `triage.Triage`, `quality.measure`, `heatmap.class_activation`.
"""
