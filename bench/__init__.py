"""Measurements, side by side with the stock way, in one run; as ratios, since machines differ and are shared."""
