"""What is asked by hand, one module each: none of it is a stage of dvc.yaml.

`cli` declares what is typed, for the stages too; a command's own work lies here.
"""
