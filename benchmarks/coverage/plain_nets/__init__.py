"""Networks in plain torch, written the way their users write them; one module per kind."""
