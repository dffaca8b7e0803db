"""Turns from queue to saved answer, and the engine behind them."""
