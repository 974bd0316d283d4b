"""MQTT v5 between devices and whoever sends them samples or uses their predictions."""
