"""The stages and the commands over their files, one module each; what they share lies in the packages."""
