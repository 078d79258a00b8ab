"""The local page (`unetdiff app`): segment, generate and compare with trained models, without code."""
