"""Layouts of datasets, one file each, behind one function that scans a folder by its layout."""
