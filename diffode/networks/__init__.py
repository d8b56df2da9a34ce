"""The networks whose weights diffode trains, ships or reads."""
