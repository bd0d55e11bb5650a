"""HTTP/2, gRPC framing and BuildKit's protobuf messages."""
