"""gRPC servicers and life cycle."""
