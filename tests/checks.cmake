# Each test program and how many checks must pass in it.
