"""Which units of a model live or die together."""
