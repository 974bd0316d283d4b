"""Samples and labels in, predictions out, over MQTT; nothing is lost while a broker is away."""
