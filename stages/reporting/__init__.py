"""The parts of the report: what each section shows, read from what the stages wrote."""
