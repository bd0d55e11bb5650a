"""A container-image build service that speaks the BuildKit wire API."""
