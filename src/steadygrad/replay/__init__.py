"""The last step of a user's own training, kept by reference, and run again when it went wrong."""
