"""Bills of materials: the packages in a tree of files, as an SPDX document."""
