"""How low-resolution volumes come about, and what they show of it."""
