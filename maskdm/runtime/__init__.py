"""What every command stands on: parameters, environment, errors, devices, processes."""
