"""Version 1 of the contract; the modules beside this one are generated."""
