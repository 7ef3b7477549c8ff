"""Person detectors, one backend a file, behind one interface."""
