"""Wire formats: protobuf files and their generated stubs."""
