"""The cloud's side of MQTT: predictions come in, versions are announced."""
