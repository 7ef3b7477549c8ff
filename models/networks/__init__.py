"""The networks that are trained: EPAM-Net, AMFI-Net, their streams and layers."""
