# Each test program and how many checks must pass in it.
clattn_add_check(test_parity 1)
