"""Where episodes come from: one file per format behind the `Source` protocol of base.py."""
