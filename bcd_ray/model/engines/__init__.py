"""What the network runs on, a file an engine; all keep to `base.Engine`, and `model.choice` picks one."""
