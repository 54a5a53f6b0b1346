"""What is done with a declared flow: planning its effects, and checking the file."""
