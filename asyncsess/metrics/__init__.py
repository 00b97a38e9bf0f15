"""Hooks that count what a store tells: for OpenTelemetry, and for Prometheus."""
