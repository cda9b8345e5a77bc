"""What teaches: write the method yourself, explain, listen, a notebook, exercises."""
