"""GPU code and how it is launched: declared, compiled, cached, chosen, run."""
