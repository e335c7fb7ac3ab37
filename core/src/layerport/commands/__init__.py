"""The logic of the commands: functions that return data, and renderers of that data.  `cli` wires them up."""
