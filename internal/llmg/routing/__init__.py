"""Who may ask for what, and where it goes."""
