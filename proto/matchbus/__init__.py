"""The gRPC contract of Matchbus and what every server of it does alike."""
