"""What is drawn for looking at it: persons, montages, videos, charts, and the pieces of the report."""
