"""What a client offers to its builds; used in process by the embedded engine, else served."""
