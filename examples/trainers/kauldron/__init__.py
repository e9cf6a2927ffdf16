"""MoFO in Kauldron: a tiny Gemma fine-tuned on questions; see the README beside it."""
