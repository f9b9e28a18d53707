"""Running a user's script under the verbs, and finding its model, optimizer, and batch."""
