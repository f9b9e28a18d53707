"""Watch a training from inside of its host: callbacks that start a watch and end it."""
