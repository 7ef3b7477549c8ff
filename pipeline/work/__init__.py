"""Units of work: planned, handed out, recorded, and how they survive what stops them."""
