"""Numbers of reference implementations of other projects' networks, and the scripts that compute them from a clone of each."""
