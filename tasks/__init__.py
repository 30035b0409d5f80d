"""Tasks: data, batches, the score and its chance level."""
