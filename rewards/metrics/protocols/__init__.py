"""Published protocols, each as its reference code computes it and with its faults mended."""
