"""What is typed: each command's name, options and help, a file per command or group of commands.

At their top these files import nothing that takes time, so that help and errors come at once; what a command
does is in `harcache.commands`, `harcache.stages` and below, imported when the command runs.
"""
