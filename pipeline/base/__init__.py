"""What every part stands on: errors, files, progress, threads and processes."""
