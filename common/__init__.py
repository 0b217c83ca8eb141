"""What actors, replay server and learner share: types, configuration, wire format, networks."""
