"""What reads a training while it runs, from torch's own hooks, and changes nothing in it."""
