"""What is installed, as others install it."""
