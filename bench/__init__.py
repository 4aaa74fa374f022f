"""Measurements, side by side with the stock way; as ratios, since machines differ and are shared."""
