"""Measurements that anyone can repeat: rivals side by side in one run, since machines are noisy."""
