"""What runs the work: parameters, clips, dataset layouts, planning, the engine."""
