"""When does distillation help? Nine questions, one script each."""
