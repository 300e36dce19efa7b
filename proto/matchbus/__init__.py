"""The gRPC contract of Matchbus, and what all its servers and all its commands do alike."""
