"""Settings of all tests."""

from hypothesis import settings

# The machines that run these tests are noisy, and a first call compiles: no test asserts a time.
settings.register_profile("hdraft", deadline=None)
settings.load_profile("hdraft")
