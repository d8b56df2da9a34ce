"""Training of the networks and the mixture that come with diffode, and of others on other images."""
