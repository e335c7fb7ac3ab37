"""The back half: from a portable model and plugin specs to an engine.  Imports neither torch nor any pack."""
