"""Nine questions about when distillation helps: `python -m experiments.studies`."""
