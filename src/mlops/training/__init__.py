"""The loop and what it is handed."""
